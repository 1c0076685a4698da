"""SAMI pretraining: a small ViT learns, from a quarter of the patches, the features a large teacher sees in all.

B images   H W pixels   N tokens   E target width   D student width
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from sami.data.datasets import keep_valid
from sami.losses import feature_loss
from sami.methods.schedule import Plan, lr_factor
from sami.methods.standardize import ChannelStatistics
from sami.methods.throughput import StageClock
from sami.metrics.agreement import FeatureAgreement, explained_variance
from sami.metrics.knn import KNNAccuracy
from sami.models.sami import SAMI
from sami.models.vit import ViT
from sami.ops.attention import fastest_attention
from sami.ops.masking import MaskSplit, num_visible_tokens, split_by_noise, take_tokens


class SAMIPretraining(pl.LightningModule):
    """min over the student of Eq. (1), arXiv:2312.00863: || f^sam(x) - f^h(x) ||^2 over tokens.

    Set `plan` before training.

    Args:
        encoder: the ViT to pretrain.
        decoder: see `SAMI`.
        teacher: batch -> target [B, N, E], with attribute `width` (E). Frozen; never part of a checkpoint.
        mask_ratio: fraction of tokens hidden from the encoder.
        loss_distance: "mse" (paper) or "cosine".
        loss_tokens: "all" (paper) or "masked" (MAE).
        standardize_target: bring each channel of the target to zero mean and unit variance, both measured once on
            `ChannelStatistics.num_photos` training views. The paper mentions no such step, so it is off; it makes
            losses of different teachers comparable and keeps loud channels from drowning quiet ones.
        weight_decay: of matrices; norms, biases, tokens and position embeddings have none.
        betas: of AdamW.
        compile: run the student through torch.compile.

    Raises:
        ValueError: `mask_ratio` keeps no token, or hides none where the loss counts masked ones only.
    """

    plan: Plan

    def __init__(
        self,
        encoder: ViT,
        decoder: Callable[[int, tuple[int, int]], nn.Module],
        teacher: nn.Module,
        *,
        mask_ratio: float,
        loss_distance: str,
        loss_tokens: str,
        standardize_target: bool,
        weight_decay: float,
        betas: tuple[float, float],
        compile: bool,
    ) -> None:
        super().__init__()
        if num_visible_tokens(encoder.num_tokens, mask_ratio) == encoder.num_tokens and loss_tokens == "masked":
            raise ValueError(f"mask_ratio={mask_ratio} hides none of {encoder.num_tokens} tokens: nothing to predict")
        self.student = SAMI(encoder, decoder, teacher.width)
        self.statistics = ChannelStatistics(teacher.width) if standardize_target else nn.Identity()
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule: not saved, not broadcast, not optimised
        self.mask_ratio, self.loss_distance, self.loss_tokens = mask_ratio, loss_distance, loss_tokens
        self.weight_decay, self.betas = weight_decay, tuple(betas)
        self.clock = StageClock()
        self.recent_losses: list[Tensor] = []
        self.mean_loss, self.agreement, self.knn = MeanMetric(), FeatureAgreement(teacher.width), KNNAccuracy()
        if compile:
            self.student.compile()

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        """Lightning moves its submodules to the device; the teacher is none."""
        device = self.trainer.strategy.root_device
        self.teacher.to(device)
        self.clock.on_gpu = device.type == "cuda"

    def on_fit_start(self) -> None:
        self.measure_statistics()

    def on_validation_start(self) -> None:
        self.measure_statistics()

    def measure_statistics(self) -> None:
        """The target's, once, unless a checkpoint brought them: so not before one could have been loaded."""
        if isinstance(self.statistics, ChannelStatistics):
            self.statistics.measure(self.trainer.datamodule, self.teacher, device=self.device)

    def target(self, batch: dict[str, Any]) -> Tensor:
        """[B, N, E] what the student has to predict, without gradient."""
        with torch.no_grad():
            return self.statistics(self.teacher(batch))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of Eq. (1) for one batch."""
        split = split_by_noise(batch["noise"], self.mask_ratio)
        with self.clock("teacher"):
            target = self.target(batch)  # [B, N, E]
        with fastest_attention(self.device.type):
            prediction = self.student(batch["image"], split)  # [B, N, E]
        loss = self.loss(prediction, target, split)
        self.watch(loss.detach(), prediction.detach(), target, split, batch_idx)
        return loss

    def watch(self, loss: Tensor, prediction: Tensor, target: Tensor, split: MaskSplit, batch_idx: int) -> None:
        """Logs every `log_every_n_steps` steps: the mean loss since, and the rest of one batch."""
        self.recent_losses.append(loss)
        if (batch_idx + 1) % (self.trainer.log_every_n_steps * self.trainer.accumulate_grad_batches):
            return
        self.log("train/loss", torch.stack(self.recent_losses).mean(), prog_bar=True, sync_dist=True)
        self.recent_losses.clear()
        prediction, target = self.counted(prediction, target, split)
        self.log("train/cosine", torch.cosine_similarity(prediction, target, dim=-1).mean())
        self.log("train/explained_variance", explained_variance(prediction, target))
        self.log("train/lr", self.lr_schedulers().get_last_lr()[0])
        self.log("train/epoch", self.trainer.global_step / self.plan.steps_per_epoch)

    def loss(self, prediction: Tensor, target: Tensor, split: MaskSplit) -> Tensor:
        """`feature_loss` as configured."""
        return feature_loss(prediction, target, split, distance=self.loss_distance, tokens=self.loss_tokens)

    def counted(self, prediction: Tensor, target: Tensor, split: MaskSplit) -> tuple[Tensor, Tensor]:
        """The tokens that the loss counts: [B, N, E] or [B, M, E] each. What it does not count is not trained."""
        if self.loss_tokens == "all":
            return prediction, target
        return take_tokens(prediction, split.ids_mask), take_tokens(target, split.ids_mask)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and agreement on fixed views with fixed masks; k-NN on the encoder's view of the whole photo."""
        batch = keep_valid(batch)
        if len(batch["image"]) == 0:  # more ranks than photos; the others wait for this one's share of the features
            self.knn.update(torch.zeros(0, self.student.encoder.embed_dim, device=self.device), batch["label"])
            return
        split = split_by_noise(batch["noise"], self.mask_ratio)
        target = self.target(batch)  # [B, N, E]
        prediction = self.student(batch["image"], split)  # [B, N, E]
        self.agreement.update(*self.counted(prediction, target, split))
        self.knn.update(self.features(batch["image"]), batch["label"])
        self.mean_loss.update(self.loss(prediction, target, split), len(target))

    def student_weights(self) -> dict[str, Tensor]:
        """The student's state, its head predicting the teacher's own features, not standardised ones."""
        weights = dict(self.student.state_dict())
        if isinstance(self.statistics, ChannelStatistics):
            weight, bias = self.statistics.fold(weights["head.weight"], weights["head.bias"])
            weights |= {"head.weight": weight, "head.bias": bias}
        return weights

    def features(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: mean of the encoder's patch tokens; MAE's class token is trained by nothing."""
        return self.student.encoder.forward_features(image)[:, 1:].mean(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Reduces over ranks, which may have seen different numbers of photos, and logs."""
        numbers = {"loss": self.mean_loss.compute(), **self.agreement.compute(), "knn": self.knn.compute()}
        self.log_dict({f"val/{name}": value.float() for name, value in numbers.items()}, sync_dist=True)
        for metric in (self.mean_loss, self.agreement, self.knn):
            metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with the schedule of `plan`, stepped every optimiser step."""
        optimizer = AdamW(decay_groups(self.student, self.weight_decay), lr=self.plan.lr, betas=self.betas, fused=True)
        factor = partial(lr_factor, warmup_steps=self.plan.warmup_steps, max_steps=self.plan.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; norms, biases, tokens and position embeddings do not."""
    decay, keep = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(("_token", "pos_embed"))
            (keep if plain else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
