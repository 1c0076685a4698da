"""SAMI pretraining: a small ViT learns, from a quarter of the patches, the features a large teacher sees in all.

B images   H W pixels   N tokens   E target width   D student width
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sami.data.crops import denormalize
from sami.data.datasets import keep_valid
from sami.losses import feature_loss
from sami.methods.base import Method, Panel, Pictures, WeightsFile, panels
from sami.methods.target_statistics import ChannelStatistics
from sami.metrics.agreement import FeatureAgreement, explained_variance
from sami.metrics.knn import KNNAccuracy
from sami.models.sami import SAMI, MaskedDecoder
from sami.models.teachers import Teacher
from sami.models.vit import ViT
from sami.ops.cpu_kernels import fastest_attention
from sami.ops.masking import MaskSplit, num_visible_tokens, split_by_noise, take_tokens
from sami.ops.pca import pca_colors, tokens_to_pixels

GREY = 128


class SAMIPretraining(Method):
    """min over the student of Eq. (1), arXiv:2312.00863: || f^sam(x) - f^h(x) ||^2 over tokens.

    Args:
        encoder: the ViT to pretrain.
        decoder: see `SAMI`.
        teacher: batch -> target [B, N, E], with attribute `width` (E). Frozen; never part of a checkpoint.
        mask_ratio: fraction of tokens hidden from the encoder.
        loss_distance: "mse" (paper) or "cosine".
        loss_tokens: "all" (paper) or "masked" (MAE).
        standardize_target: bring each channel of the target to zero mean and unit variance, both measured once on
            `ChannelStatistics.num_images` training views. The paper mentions no such step, so it is off; it makes
            losses of different teachers comparable and keeps loud channels from drowning quiet ones.
        weight_decay, betas: see `Method`.
        compile: run the student through torch.compile.

    Raises:
        ValueError: `mask_ratio` keeps no token, or hides none where the loss counts masked ones only.
    """

    results = "the backbone, curves and numbers"
    free_settings = Method.free_settings | {
        *("data.root", "method.encoder", "method.decoder", "method.teacher"),  # their own sections say what they are
        *("method.compile", "teacher.weights", "teacher.max_batch"),
        *("teacher.path", "data.cache", "data.num_views"),  # the cache's recipe and the views per image stand for them
    }

    def __init__(
        self,
        encoder: ViT,
        decoder: Callable[[int, tuple[int, int]], MaskedDecoder],
        teacher: Teacher,
        *,
        mask_ratio: float,
        loss_distance: str,
        loss_tokens: str,
        standardize_target: bool,
        weight_decay: float,
        betas: tuple[float, float],
        compile: bool,
    ) -> None:
        super().__init__(teacher, weight_decay=weight_decay, betas=betas)
        if num_visible_tokens(encoder.num_tokens, mask_ratio) == encoder.num_tokens and loss_tokens == "masked":
            raise ValueError(f"mask_ratio={mask_ratio} hides none of {encoder.num_tokens} tokens: nothing to predict")
        self.student = SAMI(encoder, decoder, teacher.width)
        self.statistics = ChannelStatistics(teacher.width) if standardize_target else nn.Identity()
        self.mask_ratio, self.loss_tokens = mask_ratio, loss_tokens
        self.loss = partial(feature_loss, distance=loss_distance, tokens=loss_tokens)
        self.mean_loss, self.agreement, self.knn = MeanMetric(), FeatureAgreement(teacher.width), KNNAccuracy()
        if compile:
            self.student.compile()

    def networks(self) -> list[nn.Module]:
        return [self.student]

    def contract(self, settings: dict[str, Any], data: Any) -> dict[str, Any]:
        own = {"teacher weights": self.teacher.fingerprint, "views per image": data.num_views}
        return super().contract(settings, data) | own

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
        mean_loss = self.watch(loss, batch_idx)
        if mean_loss is not None:
            self.log("train/loss", mean_loss, prog_bar=True, sync_dist=True)
            prediction, target = self.trained_tokens(prediction.detach(), target, split)
            self.log("train/cosine", torch.cosine_similarity(prediction, target, dim=-1).mean())
            self.log("train/explained_variance", explained_variance(prediction, target))
        return loss

    def trained_tokens(self, prediction: Tensor, target: Tensor, split: MaskSplit) -> tuple[Tensor, Tensor]:
        """The tokens that the loss counts: [B, N, E] or [B, M, E] each. What it does not count is not trained."""
        if self.loss_tokens == "all":
            return prediction, target
        return take_tokens(prediction, split.ids_mask), take_tokens(target, split.ids_mask)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and agreement on fixed views with fixed masks; k-NN on the encoder's view of the whole image."""
        batch = keep_valid(batch)
        if len(batch["image"]) == 0:  # more ranks than images; the others wait for this one's share of the features
            self.knn.update(torch.zeros(0, self.student.encoder.embed_dim, device=self.device), batch["label"])
            return
        split = split_by_noise(batch["noise"], self.mask_ratio)
        target = self.target(batch)  # [B, N, E]
        prediction = self.student(batch["image"], split)  # [B, N, E]
        self.agreement.update(*self.trained_tokens(prediction, target, split))
        self.knn.update(self.features(batch["image"]), batch["label"])
        self.mean_loss.update(self.loss(prediction, target, split), len(target))

    def features(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: mean of the encoder's patch tokens; MAE's class token is trained by nothing."""
        return self.student.encoder.forward_features(image)[:, 1:].mean(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Reduces over ranks, which may have seen different numbers of images, and logs."""
        numbers = {"loss": self.mean_loss.compute(), **self.agreement.compute(), "knn": self.knn.compute()}
        self.log_dict({f"val/{name}": value.float() for name, value in numbers.items()}, sync_dist=True)
        for metric in (self.mean_loss, self.agreement, self.knn):
            metric.reset()

    def exports(self) -> dict[str, WeightsFile]:
        """The encoder under timm's names, and the whole student.

        `timm.create_model("vit_small_patch16_224", num_classes=0, checkpoint_path=path)` loads `backbone.safetensors`
        strictly. `student.safetensors` is the encoder, decoder and head of `sami.models.sami.SAMI`, which predicts the
        teacher's features in their own units, also where training standardised them.
        """
        encoder, weights = self.student.encoder, dict(self.student.state_dict())
        if isinstance(self.statistics, ChannelStatistics):
            weight, bias = self.statistics.fold(weights["head.weight"], weights["head.bias"])
            weights |= {"head.weight": weight, "head.bias": bias}
        metadata = {"format": "pt", "model": f"vit_{encoder.size}_patch{encoder.patch_size}"}
        return {
            "backbone.safetensors": WeightsFile(encoder.state_dict(), metadata),
            "student.safetensors": WeightsFile(weights, metadata),
        }

    def curves(self, metrics: Sequence[str]) -> list[Panel]:
        """Loss, explained variance and k-NN accuracy."""
        kinds = {"loss": ["loss"], "explained variance": ["explained_variance"], "k-NN accuracy": ["knn"]}
        return panels(metrics, kinds)

    def validation_pictures(self, num_images: int, num_masks: int) -> Iterator[Pictures]:
        """Input, visible patches, and features of teacher and student as colours in one basis.

        Where the loss is on masked tokens only, nothing trains what the student says of visible ones: they stay grey.
        """
        batch = keep_valid(self.data.spread_val_batch("", num_images))
        batch = {name: value.to(self.device) for name, value in batch.items()}
        if len(batch["image"]) == 0:
            return
        split, encoder = split_by_noise(batch["noise"], self.mask_ratio), self.student.encoder
        target, prediction = self.target(batch).float(), self.student(batch["image"], split).float()  # [B, N, E]
        teacher, student = pca_colors(target, prediction)  # [B, N, 3] each
        seen = torch.zeros_like(target[..., :1], dtype=torch.bool).scatter(1, split.ids_keep.unsqueeze(-1), True)
        if self.loss_tokens == "masked":
            student = student.masked_fill(seen, GREY)
        image, size = denormalize(batch["image"]).cpu(), (batch["image"].shape[2], batch["image"].shape[3])
        seen, teacher, student = (
            tokens_to_pixels(tokens.cpu(), encoder.grid_size, size) for tokens in (seen, teacher, student)
        )
        visible = torch.where(seen, image, torch.full_like(image, GREY))
        yield Pictures("", {"input": image, "visible": visible, "teacher": teacher, "student": student})
