"""Distillation of an image encoder: small networks learn a large one's map of the whole photo, its decoder stays.

B images   S pixels per side   gh gw token grid, N = gh*gw   E embedding width   Q prompts per image   h w low-res masks
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sami.data.datasets import keep_valid
from sami.data.distillation import PLACE_NOISE
from sami.data.square import content_cells
from sami.losses import counted_feature_loss, mask_loss
from sami.methods.distill_validation import Lesson, SetScores, answer, place_prompts, to_map
from sami.methods.parameter_groups import freeze_all_but, layer_groups
from sami.methods.prompting import PromptProtocol, decode_with
from sami.methods.schedule import Plan, lr_factor
from sami.methods.standardize import ContentStatistics
from sami.methods.throughput import StageClock
from sami.models.sam import Sam
from sami.models.teachers import Teacher
from sami.ops.attention import fastest_attention


class Distillation(pl.LightningModule):
    """Decoupled distillation (arXiv:2306.14289, Sec. 3.3): the mean squared error of the image embedding, and no more.

    With `mask_weight`, masks of student and teacher are compared too, or, with `feature_weight=0`, alone: through the
    frozen decoder (semi-coupled), or one that learns along (`train_decoder`, coupled). The paper prompts both with the
    same random points and does not say how its masks are compared; here the teacher's masks at drawn places become the
    objects of `protocol`, and the loss is SAM's.

    Set `plan` before training.

    Args:
        start: teacher -> students and the teacher's decoder, see `start_students`.
        teacher: batch -> target [B, N, E]. Frozen; never part of a checkpoint.
        protocol: how students are prompted where masks are compared.
        loss_distance: "mse" (the papers'), "cosine" or "standardized_mse", each channel in units of its own spread.
        loss_tokens: "content", those that show a photo, or "all", also padding, which the decoder sees too.
        feature_weight, mask_weight: of the two losses.
        train_decoder: whether students' prompt encoders and mask decoders learn; needs a `mask_weight`.
        focal_weight, dice_weight, iou_weight: of `mask_loss`.
        weight_decay: of matrices.
        betas: of AdamW.
        lr_factors: learning rates by name of the student, as factors of the schedule's; 1 for those left out.
        checkpoint_activations: compute students' stages again in the backward pass instead of keeping activations.

    Raises:
        ValueError: see `start_students`; weights that leave nothing to learn; an unknown `loss_distance` or
            `loss_tokens`; or a protocol that does not suit the decoder.
    """

    plan: Plan

    def __init__(
        self,
        start: Callable[[Teacher], tuple[nn.ModuleDict, Sam]],
        teacher: Teacher,
        protocol: PromptProtocol,
        *,
        loss_distance: str,
        loss_tokens: str,
        feature_weight: float,
        mask_weight: float,
        train_decoder: bool,
        focal_weight: float,
        dice_weight: float,
        iou_weight: float,
        weight_decay: float,
        betas: tuple[float, float],
        lr_factors: Mapping[str, float] | None,
        checkpoint_activations: bool,
    ) -> None:
        super().__init__()
        if min(feature_weight, mask_weight) < 0 or feature_weight + mask_weight == 0:
            raise ValueError(f"feature_weight={feature_weight}, mask_weight={mask_weight}: give one of them at least")
        if train_decoder and mask_weight == 0:
            raise ValueError("train_decoder=true needs mask_weight: the feature loss does not reach the decoder")
        if loss_distance not in ("mse", "cosine", "standardized_mse"):
            raise ValueError(f"loss_distance={loss_distance!r}: choose mse, cosine or standardized_mse")
        if loss_tokens not in ("content", "all"):
            raise ValueError(f"loss_tokens={loss_tokens!r}: choose content or all")
        self.students, judge = start(teacher)
        lr_factors = dict(lr_factors or {})
        unknown = set(lr_factors) - set(self.students)
        if unknown:
            raise ValueError(f"lr_factors={lr_factors}: the students are {', '.join(self.students)}")
        if mask_weight and protocol.several_for != "any" and not judge.prompt_encoder.takes_masks:
            raise ValueError(f"{type(protocol).__name__} does not suit this teacher's decoder: use protocol=points")
        self.parts = ("image_encoder", "prompt_encoder", "mask_decoder") if train_decoder else ("image_encoder",)
        for student in self.students.values():
            freeze_all_but(student, self.parts)
            student.recompute_activations(checkpoint_activations)
        self.statistics = ContentStatistics(teacher.width) if loss_distance == "standardized_mse" else nn.Identity()
        self._frozen = teacher, judge  # in a tuple, so that they are no submodules: not saved, broadcast or optimised
        self.protocol, self.loss_distance, self.loss_tokens = protocol, loss_distance, loss_tokens
        self.feature_weight, self.mask_weight = feature_weight, mask_weight
        self.mask_loss_weights = {"focal_weight": focal_weight, "dice_weight": dice_weight, "iou_weight": iou_weight}
        self.weight_decay, self.betas, self.lr_factors = weight_decay, tuple(betas), lr_factors
        self.clock = StageClock()
        self.recent: list[Tensor] = []
        self.scores: dict[str, SetScores] = {}
        self.train()  # Lightning leaves the mode as it finds it, and a segmenter is built to be used

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._frozen[0]

    @property
    def judge(self) -> Sam:
        """The teacher's decoder, frozen."""
        return self._frozen[1]

    def train(self, mode: bool = True) -> "Distillation":
        """Frozen decoders stay in evaluation mode."""
        super().train(mode)
        for student in self.students.values():
            for part in {"prompt_encoder", "mask_decoder"} - set(self.parts):
                getattr(student, part).eval()
        return self

    def setup(self, stage: str) -> None:
        """Lightning moves its submodules to the device; the teacher is none.

        Raises:
            ValueError: data and students disagree about what is seen.
        """
        device = self.trainer.strategy.root_device
        for part in self._frozen:
            part.to(device)
        self.clock.on_gpu = device.type == "cuda"
        spec = self.trainer.datamodule.spec
        if (spec.image_size, spec.preprocess) != (self.judge.image_size, self.judge.preprocess):
            raise ValueError(
                f"the data has image_size={spec.image_size} and preprocess={spec.preprocess}, the students "
                f"{self.judge.image_size} and {self.judge.preprocess}: set both alike"
            )

    def on_fit_start(self) -> None:
        self.measure_statistics()

    def measure_statistics(self) -> None:
        """The target's, once, unless a checkpoint brought them."""
        if isinstance(self.statistics, ContentStatistics):
            self.statistics.measure(self.trainer.datamodule, self.teacher, device=self.device)

    @torch.no_grad()
    def lesson(self, batch: dict[str, Any]) -> Lesson:
        """What there is to learn from a batch of photos."""
        target, input_size, side = self.teacher(batch), batch["input_size"], self.judge.image_size
        gh = gw = side // self.teacher.patch_size
        counted, masks, found = content_cells(input_size, side, (gh, gw)), None, None
        if self.mask_weight and self.training:
            decode = decode_with(self.judge, to_map(target, (gh, gw)))
            prompts = place_prompts(batch["noise"][..., -PLACE_NOISE:], input_size)
            masks = answer(decode, prompts, input_size, side)
            found = masks.flatten(2).any(dim=2)
        return Lesson(target, counted, masks, found)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The sum of the students' losses; they share the lesson, and no parameter."""
        torch.manual_seed(int(batch["position"][0]))  # of drop path: a continued run draws what an uncut one would
        with self.clock("teacher"):
            lesson = self.lesson(batch)
        with fastest_attention(self.device.type):
            losses = torch.stack([self.loss(student, batch, lesson) for student in self.students.values()])
        self.watch(losses.detach(), batch_idx)
        return losses[:, 0].sum() + self.touch_all()

    def loss(self, student: Sam, batch: dict[str, Any], lesson: Lesson) -> Tensor:
        """[3]: the loss of one student, and the two it is made of."""
        prediction = student.embed(batch["image"])  # [B, E, gh, gw]
        features = self.feature_loss(prediction.flatten(2).transpose(1, 2), lesson)
        masks = torch.zeros_like(features)
        if self.mask_weight:
            decode = decode_with(student, student.prepare(prediction))
            rounds = self.protocol.rounds(decode, lesson.masks, batch["noise"], side=student.image_size)
            losses = [mask_loss(*found, lesson.masks, lesson.found, **self.mask_loss_weights).total for found in rounds]
            masks = torch.stack(losses).mean()
        return torch.stack([self.feature_weight * features + self.mask_weight * masks, features, masks])

    def feature_loss(self, prediction: Tensor, lesson: Lesson) -> Tensor:
        """The distance of two maps [B, N, E] over the tokens that count."""
        counted = lesson.counted | (self.loss_tokens == "all")
        std = self.statistics.std if isinstance(self.statistics, ContentStatistics) else None
        return counted_feature_loss(prediction, lesson.target, counted, distance=self.loss_distance, std=std)

    def touch_all(self) -> Tensor | float:
        """Zero, made of every trainable parameter: data-parallel training waits for a gradient of each, used or not.

        Our own encoders use all of theirs; decoders and timm's other backbones may not.
        """
        if len(self.parts) == 1 and all(not hasattr(s.image_encoder, "backbone") for s in self.students.values()):
            return 0.0
        return 0.0 * sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)

    def watch(self, losses: Tensor, batch_idx: int) -> None:
        """Logs every `log_every_n_steps` steps the mean since: losses [students, 3]."""
        self.recent.append(losses)
        if (batch_idx + 1) % (self.trainer.log_every_n_steps * self.trainer.accumulate_grad_batches):
            return
        means = torch.stack(self.recent).mean(dim=0)
        self.recent.clear()
        self.log("train/loss", means[:, 0].sum(), prog_bar=True, sync_dist=True)
        for name, (_, features, masks) in zip(self.students, means, strict=True):
            place = self.place("train", name)
            self.log(f"{place}/feature_loss", features, sync_dist=True)
            if self.mask_weight:
                self.log(f"{place}/mask_loss", masks, sync_dist=True)
        self.log("train/lr", self.lr_schedulers().get_last_lr()[0])
        self.log("train/epoch", self.trainer.global_step / self.plan.steps_per_epoch)

    def place(self, *parts: str) -> str:
        """The name of a number: a single student's need not say whose it is."""
        alone = list(self.students) if len(self.students) == 1 else []
        return "/".join(part for part in parts if part and part not in alone)

    def on_validation_start(self) -> None:
        self.measure_statistics()
        first = self.trainer.global_step == 0  # what the teacher itself makes of the masks does not change
        make = partial(SetScores, list(self.students), self.teacher.width, self.device, with_teacher=first)
        self.scores = {name: make() for name in self.trainer.datamodule.val_sources}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds to the numbers of one validation set, see `SetScores`."""
        name = list(self.scores)[dataloader_idx]
        batch = keep_valid(batch)
        if len(batch["image"]):
            lesson = self.lesson(batch) if self.trainer.datamodule.knows_teacher(name) else None
            self.scores[name].update(self.students, batch, lesson, judge=self.judge, loss=self.feature_loss)

    def on_validation_epoch_end(self) -> None:
        """Reduces over ranks and logs."""
        for name, scores in self.scores.items():
            for student, numbers in scores.compute().items():
                place = self.place("val", name, student)
                self.log_dict({f"{place}/{kind}": value.float() for kind, value in numbers.items()})

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with groups of their own for each student, linear warm-up and cosine decay, stepped every step."""
        groups = []
        for name, student in self.students.items():
            lr = self.plan.lr * self.lr_factors.get(name, 1.0)
            groups += layer_groups(student, lr=lr, weight_decay=self.weight_decay, layer_decay=1.0)
        optimizer = AdamW(groups, lr=self.plan.lr, betas=self.betas, fused=True)
        factor = partial(lr_factor, warmup_steps=self.plan.warmup_steps, max_steps=self.plan.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
