"""Distillation of an image encoder: small networks learn a large one's map of the whole image, its decoder stays.

B images   S pixels per side   gh gw token grid, N = gh*gw   E embedding width   Q prompts per image   h w low-res masks
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sami.data.crops import denormalize
from sami.data.datasets import keep_valid
from sami.data.square import content_cells
from sami.evaluation.teacher_agreement import (
    TeacherAgreement,
    TeacherOutput,
    draw_map,
    place_prompts,
    predict_masks,
    to_map,
    to_tokens,
)
from sami.losses import mask_loss, valid_token_loss
from sami.methods.base import Method, Panel, Pictures, WeightsFile, panels, segmenter_file
from sami.methods.optimizer import freeze_all_but
from sami.methods.prompt_protocols import PromptNoise, PromptSampling
from sami.methods.target_statistics import ContentStatistics
from sami.models.sam import Sam, decode_with
from sami.models.teachers import Teacher
from sami.models.weights import file_digest
from sami.ops.cpu_kernels import fastest_attention

DECODER = ("prompt_encoder", "mask_decoder")
PANELS = {  # title: numbers, by the last part of their names
    "feature loss": ("feature_loss", "loss"),
    "explained variance": ("explained_variance",),
    "mIoU with the teacher's masks": ("teacher_point", "teacher_box"),
    "mIoU with true masks": ("box", "click_1"),
}


class Distillation(Method):
    """Decoupled distillation (arXiv:2306.14289, Sec. 3.3): the mean squared error of the image embedding, and no more.

    With `mask_weight`, masks of student and teacher are compared too, or, with `feature_weight=0`, alone: through the
    frozen decoder (semi-coupled), or one that learns along (`train_decoder`, coupled). The paper prompts both with the
    same random points and does not say how its masks are compared; here the teacher's masks at drawn places become the
    objects of `protocol`, and the loss is SAM's.

    Args:
        start: teacher -> students and the teacher's decoder, see `start_students`.
        teacher: batch -> target [B, N, E]. Frozen; never part of a checkpoint.
        protocol: how students are prompted where masks are compared.
        loss_distance: "mse" (the papers'), "cosine" or "standardized_mse", each channel in units of its own spread.
        loss_tokens: "content", those that show an image, or "all", also padding, which the decoder sees too.
        feature_weight, mask_weight: of the two losses.
        train_decoder: whether students' prompt encoders and mask decoders learn; needs a `mask_weight`.
        focal_weight, dice_weight, iou_weight: of `mask_loss`.
        weight_decay, betas: see `Method`.
        checkpoint_activations: compute students' stages again in the backward pass instead of keeping activations.

    Raises:
        ValueError: see `start_students`; weights that leave nothing to learn; an unknown `loss_distance` or
            `loss_tokens`; or a protocol that does not suit the decoder.
    """

    rest = "students"
    free_settings = Method.free_settings | {
        *("method.teacher", "method.protocol", "method.start"),  # their own sections say what they are
        *("method.checkpoint_activations", "data.num_val_masks"),
        *("teacher.weights", "teacher.checkpoint", "teacher.max_batch", "teacher.path", "data.cache"),  # contents stand
    }

    def __init__(
        self,
        start: Callable[[Teacher], tuple[nn.ModuleDict, Sam]],
        teacher: Teacher,
        protocol: PromptSampling,
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
        checkpoint_activations: bool,
    ) -> None:
        if min(feature_weight, mask_weight) < 0 or feature_weight + mask_weight == 0:
            raise ValueError(f"feature_weight={feature_weight}, mask_weight={mask_weight}: give one of them at least")
        if train_decoder and mask_weight == 0:
            raise ValueError("train_decoder=true needs mask_weight: the feature loss does not reach the decoder")
        if loss_distance not in ("mse", "cosine", "standardized_mse"):
            raise ValueError(f"loss_distance={loss_distance!r}: choose mse, cosine or standardized_mse")
        if loss_tokens not in ("content", "all"):
            raise ValueError(f"loss_tokens={loss_tokens!r}: choose content or all")
        students, teacher_decoder = start(teacher)
        super().__init__(teacher, teacher_decoder, weight_decay=weight_decay, betas=betas)
        self.students = students
        if mask_weight and protocol.corrects and not teacher_decoder.prompt_encoder.takes_masks:
            raise ValueError(f"{type(protocol).__name__} does not suit this teacher's decoder: use protocol=points")
        self.parts = ("image_encoder", *DECODER) if train_decoder else ("image_encoder",)
        for student in self.segmenters.values():
            freeze_all_but(student, self.parts)
            student.set_grad_checkpointing(checkpoint_activations)
        self.statistics = ContentStatistics(teacher.width) if loss_distance == "standardized_mse" else nn.Identity()
        self.protocol, self.loss_distance, self.loss_tokens = protocol, loss_distance, loss_tokens
        self.feature_weight, self.mask_weight = feature_weight, mask_weight
        self.mask_loss_weights = {"focal_weight": focal_weight, "dice_weight": dice_weight, "iou_weight": iou_weight}
        self.scores: dict[str, TeacherAgreement] = {}
        self.train()  # Lightning leaves the mode as it finds it, and a segmenter is built to be used

    @property
    def teacher_decoder(self) -> Sam:
        """The teacher's decoder, frozen: a `Sam` that takes embeddings."""
        return self._frozen[1]

    @property
    def segmenters(self) -> dict[str, Sam]:
        """The students by name."""
        return cast(dict[str, Sam], dict(self.students.items()))

    def networks(self) -> list[Sam]:
        return list(self.segmenters.values())

    def frozen_parts(self) -> list[nn.Module]:
        return [getattr(student, part) for student in self.networks() for part in DECODER if part not in self.parts]

    def contract(self, settings: dict[str, Any], data: Any) -> dict[str, Any]:
        # the contents of files stand for them
        files = [name for name in settings if name == "decoder_checkpoint" or name.startswith("init")]
        own = {file: file_digest(settings[file]) for file in files}
        return super().contract(settings, data) | own | {"teacher weights": self.teacher.fingerprint}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.check_frame(self.teacher_decoder)

    @torch.no_grad()
    def teacher_output(self, batch: dict[str, Any]) -> TeacherOutput:
        """What there is to learn from a batch of images."""
        target, input_size, image_size = self.teacher(batch), batch["input_size"], self.teacher_decoder.image_size
        gh = gw = image_size // self.teacher.patch_size
        token_valid = content_cells(input_size, image_size, (gh, gw))
        if not (self.mask_weight and self.training):
            return TeacherOutput(target, token_valid)
        decode = decode_with(self.teacher_decoder, to_map(target, (gh, gw)))
        prompts = place_prompts(PromptNoise.split(batch["noise"]).place, input_size)
        masks = predict_masks(decode, prompts, input_size, image_size)
        return TeacherOutput(target, token_valid, masks, masks.flatten(2).any(dim=2))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The sum of the students' losses; they share the teacher's output, and no parameter."""
        torch.manual_seed(int(batch["position"][0]))  # of drop path: a continued run draws what an uncut one would
        with self.clock("teacher"):
            output = self.teacher_output(batch)
        with fastest_attention(self.device.type):
            losses = torch.stack([self.loss(student, batch, output) for student in self.segmenters.values()])
        means = self.watch(losses, batch_idx)  # [students, 3]
        if means is not None:
            self.log("train/loss", means[:, 0].sum(), prog_bar=True, sync_dist=True)
            for name, (_, features, masks) in zip(self.students, means, strict=True):
                metric_name = self.metric_name("train", name)
                self.log(f"{metric_name}/feature_loss", features, sync_dist=True)
                if self.mask_weight:
                    self.log(f"{metric_name}/mask_loss", masks, sync_dist=True)
        # our own encoders use all of their parameters; decoders and timm's other backbones may not
        unused = len(self.parts) > 1 or any(hasattr(student.image_encoder, "backbone") for student in self.networks())
        return losses[:, 0].sum() + (self.touch_unused() if unused else 0.0)

    def loss(self, student: Sam, batch: dict[str, Any], output: TeacherOutput) -> Tensor:
        """[3]: the loss of one student, and the two it is made of."""
        prediction = student.embed(batch["image"])  # [B, E, gh, gw]
        features = self.feature_loss(to_tokens(prediction), output)
        masks = torch.zeros_like(features)
        if self.mask_weight:
            assert output.masks is not None and output.mask_valid is not None
            decode, truth = decode_with(student, student.prepare(prediction)), (output.masks, output.mask_valid)
            found = self.protocol.iterations(decode, output.masks, batch["noise"], image_size=student.image_size)
            losses = [mask_loss(*candidates, *truth, **self.mask_loss_weights).total for candidates in found]
            masks = torch.stack(losses).mean()
        return torch.stack([self.feature_weight * features + self.mask_weight * masks, features, masks])

    def feature_loss(self, prediction: Tensor, output: TeacherOutput) -> Tensor:
        """The distance of two maps [B, N, E] over the tokens that count."""
        token_valid = output.token_valid | (self.loss_tokens == "all")
        std = self.statistics.std if isinstance(self.statistics, ContentStatistics) else None
        return valid_token_loss(prediction, output.target, token_valid, distance=self.loss_distance, std=std)

    def metric_name(self, *parts: str) -> str:
        """The name of a number: a single student's need not say whose it is."""
        alone = list(self.students) if len(self.students) == 1 else []
        return "/".join(part for part in parts if part and part not in alone)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        first = self.trainer.global_step == 0  # what the teacher itself makes of the masks does not change
        make = partial(TeacherAgreement, list(self.students), self.teacher.width, self.device, with_teacher=first)
        self.scores = {name: make() for name in self.data.val_sources}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds to the numbers of one validation set, see `TeacherAgreement`."""
        name = list(self.scores)[dataloader_idx]
        batch = keep_valid(batch)
        if len(batch["image"]):
            output = self.teacher_output(batch) if self.data.knows_teacher(name) else None
            decoder, loss = self.teacher_decoder, self.feature_loss
            self.scores[name].update(self.segmenters, batch, output, teacher_decoder=decoder, loss=loss)

    def on_validation_epoch_end(self) -> None:
        for name, scores in self.scores.items():
            for student, numbers in scores.compute().items():
                metric_name = self.metric_name("val", name, student)
                self.log_dict({f"{metric_name}/{kind}": value.float() for kind, value in numbers.items()})

    def exports(self) -> dict[str, WeightsFile]:
        label = "segmenter_{}" if len(self.students) > 1 else "segmenter"
        return {f"{label.format(name)}.safetensors": segmenter_file(own) for name, own in self.segmenters.items()}

    def curves(self, metrics: Sequence[str]) -> list[Panel]:
        """Losses, maps and masks of every student; dashed: what the teacher's own maps give."""
        return panels([metric for metric in metrics if metric != "train/loss"], PANELS)  # that is the sum over students

    def validation_pictures(self, num_images: int, num_masks: int) -> Iterator[Pictures]:
        """Image, the teacher's map and masks, and those of each student: colours of one basis, equal prompts.

        Masks are asked for by the boxes of the true ones where there are such, else by points anywhere in the image.
        """
        for name in self.data.val_sources:
            batch = self.data.spread_val_batch(name, num_images)
            if not batch["image_valid"].any() or not self.data.knows_teacher(name):
                continue
            batch = keep_valid(batch)
            batch = {key: batch[key].to(self.device) for key in batch if isinstance(batch[key], Tensor)}
            batch |= {key: batch[key][:, :num_masks] for key in ("box", "object_valid", "place_noise")}
            target, image = self.teacher_output(batch).target.float(), denormalize(batch["image"]).cpu()
            maps = {"teacher": (self.teacher_decoder, target)}
            for label, student in self.segmenters.items():
                maps[label] = student, to_tokens(student.embed(batch["image"]).float())
            columns: dict[str, Sequence | Tensor] = {"image": image}
            for who, (model, tokens) in maps.items():
                picture, masks = draw_map(model, tokens, target, batch)
                columns |= {who: picture, f"{who}'s masks": list(zip(image, masks, strict=True))}
            yield Pictures(name, columns)
