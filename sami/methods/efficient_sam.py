"""EfficientSAM's second stage: a pretrained encoder and SAM's decoder learn to find objects from prompts.

B images   H W pixels   Q objects per image   K candidate masks   h w low-resolution masks
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sami.data.objects import ImageObjects
from sami.losses import mask_loss
from sami.methods.mask_validation import MaskScores
from sami.methods.parameter_groups import freeze_all_but, layer_groups
from sami.methods.prompting import Decode, PromptProtocol, decode_with
from sami.methods.rounds import mean_by_rounds
from sami.methods.schedule import Plan, linear_factor
from sami.methods.throughput import StageClock
from sami.models.sam import Sam
from sami.ops.attention import fastest_attention


class EfficientSAMFinetuning(pl.LightningModule):
    """Trains a promptable segmenter on photos with masks (arXiv:2312.00863, Sec. 4.1, "following SAM").

    Set `plan` before training.

    Args:
        model: the network.
        protocol: how it is prompted while it trains.
        train_parts: of image_encoder, prompt_encoder, mask_decoder; the others stay as they are. With neck in place of
            image_encoder, the backbone stays.
        focal_weight, dice_weight, iou_weight: of `mask_loss`.
        weight_decay: of matrices.
        betas: of AdamW.
        layer_decay: how much slower each earlier layer of the encoder learns, see `layer_groups`.
        checkpoint_activations: compute encoder blocks and decoder again in the backward pass instead of keeping what
            they computed: a step then takes about a third longer and less memory.
        validate_zoomed: also ask for each box in a window of the photo around it, see `predict_zoomed`.

    Raises:
        ValueError: see `freeze_all_but`; or a protocol that the model's prompt encoder does not know.
    """

    plan: Plan

    def __init__(
        self,
        model: Sam,
        protocol: PromptProtocol,
        *,
        train_parts: Sequence[str],
        focal_weight: float,
        dice_weight: float,
        iou_weight: float,
        weight_decay: float,
        betas: tuple[float, float],
        layer_decay: float,
        checkpoint_activations: bool,
        validate_zoomed: bool,
    ) -> None:
        super().__init__()
        if protocol.several_for != "any" and not model.prompt_encoder.takes_masks:
            raise ValueError(
                f"{type(protocol).__name__} gives background clicks and mask prompts, which this model's prompt "
                "encoder does not know: use protocol=points, or a model with decoder=sam"
            )
        freeze_all_but(model, train_parts)
        self.model, self.protocol = model, protocol
        model.several_for = protocol.several_for
        self.train_parts = tuple(train_parts)
        self.loss_weights = {"focal_weight": focal_weight, "dice_weight": dice_weight, "iou_weight": iou_weight}
        self.weight_decay, self.betas, self.layer_decay = weight_decay, tuple(betas), layer_decay
        model.recompute_activations(checkpoint_activations)
        self.clock = StageClock()
        self.recent: list[Tensor] = []
        self.scores: dict[str, MaskScores] = {}
        self.validate_zoomed = validate_zoomed
        self.train()  # Lightning leaves the mode as it finds it, and a segmenter is built to be used

    def setup(self, stage: str) -> None:
        """Raises ValueError where data and model disagree about what the model sees."""
        self.clock.on_gpu = self.trainer.strategy.root_device.type == "cuda"
        spec = self.trainer.datamodule.spec
        if (spec.image_size, spec.preprocess) != (self.model.image_size, self.model.preprocess):
            raise ValueError(
                f"the data has image_size={spec.image_size} and preprocess={spec.preprocess}, the model "
                f"{self.model.image_size} and {self.model.preprocess}: set both alike"
            )

    def train(self, mode: bool = True) -> "EfficientSAMFinetuning":
        """Frozen parts stay in evaluation mode: no drop path, no running statistics."""
        super().train(mode)
        for part in {"image_encoder", "prompt_encoder", "mask_decoder"} - set(self.train_parts):
            getattr(self.model, part).eval()
        return self

    def embed(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> image_embeddings [B, 256, gh, gw]."""
        frozen = not {"image_encoder", "neck"} & set(self.train_parts)
        with self.clock("encoder"), torch.no_grad() if frozen else nullcontext(), fastest_attention(image.device.type):
            return self.model.embed(image)

    def losses(self, image_embeddings: Tensor, batch: dict[str, Any]) -> Iterator[Tensor]:
        """The loss of each round of the protocol and its parts, [4]. No round needs the graph of another."""
        decode = decode_with(self.model, image_embeddings)
        asked = {"side": self.model.image_size, "boxes": batch["boxes"]}
        rounds = self.protocol.rounds(decode, batch["masks"], batch["noise"], **asked)
        for low_res_masks, iou_predictions in rounds:
            yield torch.stack(
                mask_loss(low_res_masks, iou_predictions, batch["masks"], batch["object_valid"], **self.loss_weights)
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The mean of the loss over the rounds of the protocol.

        Each round's backward pass through the decoder follows it at once, so that memory holds one round, however
        many there are; that through the image encoder comes once, for the sum of what they want of the embedding.
        """
        torch.manual_seed(int(batch["position"][0]))  # of drop path: a continued run draws what an uncut one would
        embeddings = self.embed(batch["image"])
        side = embeddings.detach().requires_grad_(embeddings.requires_grad)
        parts = (self.model.prompt_encoder, self.model.mask_decoder)
        weights = [p for part in parts for p in part.parameters() if p.requires_grad]
        leaves, tensors = ([side, *weights], [embeddings, *weights]) if side.requires_grad else (weights, weights)
        loss, numbers = mean_by_rounds(self.losses(side, batch), leaves, tensors)
        self.watch(numbers, batch_idx)
        return loss + 0.0 * self.touch_all()

    def touch_all(self) -> Tensor:
        """A sum over every trainable parameter: data-parallel training waits for a gradient of each, used or not."""
        return sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)

    def watch(self, losses: Tensor, batch_idx: int) -> None:
        """Logs every `log_every_n_steps` steps: the mean loss since, its parts, and that of first and last round."""
        self.recent.append(losses)
        if (batch_idx + 1) % (self.trainer.log_every_n_steps * self.trainer.accumulate_grad_batches):
            return
        losses = torch.stack(self.recent).mean(dim=0)  # [rounds, 4]
        self.recent.clear()
        self.log("train/loss", losses[:, 0].mean(), prog_bar=True, sync_dist=True)
        parts = dict(zip(("focal", "dice", "iou_error"), losses[:, 1:].mean(dim=0), strict=True))
        parts |= {"loss_first_round": losses[0, 0], "loss_last_round": losses[-1, 0]}
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, sync_dist=True)
        self.log("train/lr", self.lr_schedulers().get_last_lr()[-1])  # of the layers that learn fastest
        self.log("train/epoch", self.trainer.global_step / self.plan.steps_per_epoch)

    def on_validation_start(self) -> None:
        zoom_with = self.model if self.validate_zoomed else None
        self.scores = {
            name: MaskScores(self.device, zoom_with=zoom_with) for name in self.trainer.datamodule.val_sources
        }

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds to the numbers of one validation set, see `MaskScores`."""
        scores = list(self.scores.values())[dataloader_idx]
        for _, objects, decode in self.each_photo(batch):
            scores.add_photo(decode, objects, several_for=self.model.several_for)

    def each_photo(self, batch: dict[str, Any]) -> Iterator[tuple[int, ImageObjects, Decode]]:
        """Row, objects and decoder of the photos in a validation batch, one by one: the encoder saw them together."""
        rows = batch["image_valid"].nonzero()[:, 0].tolist()
        if rows:
            side = self.model.prepare(self.embed(batch["image"][rows]))
            for place, row in enumerate(rows):
                yield row, batch["objects"][row], decode_with(self.model, side.take([place]))

    def on_validation_epoch_end(self) -> None:
        """Reduces over ranks and logs."""
        for name, scores in self.scores.items():
            place = f"val/{name}/" if name else "val/"
            self.log_dict({f"{place}{kind}": value.float() for kind, value in scores.compute().items()})

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with linear warm-up and decay, stepped every optimiser step."""
        groups = layer_groups(self.model, lr=self.plan.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        optimizer = AdamW(groups, lr=self.plan.lr, betas=self.betas, fused=True)
        factor = partial(linear_factor, warmup_steps=self.plan.warmup_steps, max_steps=self.plan.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
