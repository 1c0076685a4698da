"""Fine-tuning of a promptable segmenter: an image encoder and SAM's decoder learn to find objects from prompts.

B images   H W pixels   Q objects per image   K candidate masks   h w low-resolution masks   S pixels per side
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sami.data.crops import denormalize
from sami.data.objects import ImageObjects
from sami.evaluation.prompted import MEASURED_ON, MaskScores, make_prompts, masks_from_prompts
from sami.losses import mask_loss
from sami.methods.base import Curve, Method, Panel, Pictures, WeightsFile, segmenter_file
from sami.methods.optimizer import freeze_all_but
from sami.methods.prompt_protocols import PromptSampling
from sami.methods.round_gradients import mean_by_iterations
from sami.models.sam import Decode, Sam, decode_with
from sami.models.weights import file_digest
from sami.ops.cpu_kernels import fastest_attention
from sami.ops.frames import ImageFrame

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
CURVES = ("box", "click_1", "click_3", "click_5", "uniform_1")
TRIVIAL = {"filled_box": "box", "click_disc": "click_1", "uniform_disc": "uniform_1"}  # and what it is to be beaten by
PICTURES = {"": "true masks", "box": "from the box", "click_1": "from 1 click", "click_5": "from 5 clicks"}


class SegmenterFinetuning(Method):
    """Trains a promptable segmenter on images with masks (arXiv:2312.00863, Sec. 4.1, "following SAM").

    Args:
        model: the network.
        protocol: how it is prompted while it trains.
        train_parts: of image_encoder, prompt_encoder, mask_decoder; the others stay as they are. With neck in place of
            image_encoder, the backbone stays.
        focal_weight, dice_weight, iou_weight: of `mask_loss`.
        weight_decay, betas, layer_decay: see `Method`.
        checkpoint_activations: compute encoder blocks and decoder again in the backward pass instead of keeping what
            they computed: a step then takes about a third longer and less memory.

    Raises:
        ValueError: see `freeze_all_but`; or a protocol that the model's prompt encoder does not know.
    """

    decay = "linear"
    rest = "decoder_and_backward"
    free_settings = Method.free_settings | {
        *("method.model", "method.protocol"),  # their own sections say what they are
        *("method.checkpoint_activations", "data.num_val_masks"),
    }

    def __init__(
        self,
        model: Sam,
        protocol: PromptSampling,
        *,
        train_parts: Sequence[str],
        focal_weight: float,
        dice_weight: float,
        iou_weight: float,
        weight_decay: float,
        betas: tuple[float, float],
        layer_decay: float,
        checkpoint_activations: bool,
    ) -> None:
        super().__init__(weight_decay=weight_decay, betas=betas, layer_decay=layer_decay)
        if protocol.corrects and not model.prompt_encoder.takes_masks:
            raise ValueError(
                f"{type(protocol).__name__} gives background clicks and mask prompts, which this model's prompt "
                "encoder does not know: use protocol=points, or a model with decoder=sam"
            )
        freeze_all_but(model, train_parts)
        self.model, self.protocol = model, protocol
        self.train_parts = tuple(train_parts)
        self.loss_weights = {"focal_weight": focal_weight, "dice_weight": dice_weight, "iou_weight": iou_weight}
        model.set_grad_checkpointing(checkpoint_activations)
        self.scores: dict[str, MaskScores] = {}
        self.train()  # Lightning leaves the mode as it finds it, and a segmenter is built to be used

    def networks(self) -> list[nn.Module]:
        return [self.model]

    def frozen_parts(self) -> list[nn.Module]:
        return [getattr(self.model, part) for part in PARTS if part not in self.train_parts]

    def contract(self, settings: dict[str, Any], data: Any) -> dict[str, Any]:
        # the contents of files stand for them
        files = ("model.checkpoint", "model.backbone", "model.decoder_checkpoint")
        return super().contract(settings, data) | {file: file_digest(settings[file]) for file in files}

    def remark(self, data: Any) -> str | None:
        return MEASURED_ON if data.validates else None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.check_frame(self.model)

    def embed(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> image_embeddings [B, 256, gh, gw]."""
        frozen = not {"image_encoder", "neck"} & set(self.train_parts)
        with self.clock("encoder"), torch.no_grad() if frozen else nullcontext(), fastest_attention(image.device.type):
            return self.model.embed(image)

    def losses(self, image_embeddings: Tensor, batch: dict[str, Any]) -> Iterator[Tensor]:
        """The loss of each iteration of the protocol and its parts, [4]. None needs the graph of another."""
        decode = decode_with(self.model, image_embeddings)
        asked = {"image_size": self.model.image_size, "boxes": batch["boxes"]}
        for low_res_masks, iou_predictions in self.protocol.iterations(decode, batch["masks"], batch["noise"], **asked):
            yield torch.stack(
                mask_loss(low_res_masks, iou_predictions, batch["masks"], batch["object_valid"], **self.loss_weights)
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The mean of the loss over the iterations of the protocol, with one of them in memory at a time."""
        torch.manual_seed(int(batch["position"][0]))  # of drop path: a continued run draws what an uncut one would
        embeddings = self.embed(batch["image"])
        loss, numbers = self.mean_of_losses(embeddings, batch)
        means = self.watch(numbers, batch_idx)  # [iterations, 4]
        if means is not None:
            self.log("train/loss", means[:, 0].mean(), prog_bar=True, sync_dist=True)
            parts = dict(zip(("focal", "dice", "iou_error"), means[:, 1:].mean(dim=0), strict=True))
            parts |= {"loss_first_iteration": means[0, 0], "loss_last_iteration": means[-1, 0]}
            self.log_dict({f"train/{name}": value for name, value in parts.items()}, sync_dist=True)
        return loss + self.touch_unused()

    def mean_of_losses(self, embeddings: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The mean loss, and all numbers [iterations, 4], see `mean_by_iterations`.

        Each iteration's backward pass through the decoder follows it at once. It ends at a copy of the embeddings
        without a graph; that through the image encoder comes once, for the sum of what all iterations want of them.
        """
        copy = embeddings.detach().requires_grad_(embeddings.requires_grad)
        decoder = (self.model.prompt_encoder, self.model.mask_decoder)
        weights: list[Tensor] = [p for part in decoder for p in part.parameters() if p.requires_grad]
        leaves, sources = ([copy, *weights], [embeddings, *weights]) if copy.requires_grad else (weights, weights)
        return mean_by_iterations(self.losses(copy, batch), leaves, sources)

    def on_validation_start(self) -> None:
        self.scores = {name: MaskScores(self.device) for name in self.data.val_sources}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds to the numbers of one validation set, see `MaskScores`."""
        scores = list(self.scores.values())[dataloader_idx]
        for _, objects, decode in self.each_image(batch):
            scores.update(decode, objects, decoder=self.model.decoder)

    def each_image(self, batch: dict[str, Any]) -> Iterator[tuple[int, ImageObjects, Decode]]:
        """Row, objects and decoder of the images in a validation batch, one by one: the encoder saw them together."""
        rows = batch["image_valid"].nonzero()[:, 0].tolist()
        if rows:
            images = self.model.prepare(self.embed(batch["image"][rows]))
            for index, row in enumerate(rows):
                yield row, batch["objects"][row], decode_with(self.model, images.take([index]))

    def on_validation_epoch_end(self) -> None:
        for name, scores in self.scores.items():
            prefix = f"val/{name}/" if name else "val/"
            self.log_dict({f"{prefix}{kind}": value.float() for kind, value in scores.compute().items()})

    def exports(self) -> dict[str, WeightsFile]:
        return {"segmenter.safetensors": segmenter_file(self.model)}

    def curves(self, metrics: Sequence[str]) -> list[Panel]:
        """The loss, and mIoU for each validation set; dashed: the trivial answers, in the colour of their rival."""
        panels = [Panel("loss", [Curve("train/loss", "train")], log=True)]
        for name in sorted({metric.rpartition("/")[0] for metric in metrics if metric.startswith("val/")}):
            own = [Curve(f"{name}/{kind}", kind, f"C{number}") for number, kind in enumerate(CURVES)]
            own += [Curve(f"{name}/{kind}", kind, f"C{CURVES.index(TRIVIAL[kind])}", level=True) for kind in TRIVIAL]
            title = f"mIoU, {name.removeprefix('val').strip('/') or 'validation'}"
            panels.append(Panel(title, own, limits=(0.0, 1.0)))
        return panels

    def validation_pictures(self, num_images: int, num_masks: int) -> Iterator[Pictures]:
        """Image, true masks, and those from a box, one click and five clicks, an object in one colour throughout."""
        for name in self.data.val_sources:
            batch = self.data.spread_val_batch(name, num_images)
            batch["image"] = batch["image"].to(self.device)
            columns: dict[str, list[Any]] = defaultdict(list)
            for row, objects, decode in self.each_image(batch):
                grid = objects.frame.shrunk(objects.frame.image_size)
                masks, noise = (tensor.to(self.device) for tensor in objects.take(slice(num_masks), grid))
                prompts = make_prompts(masks, noise)
                found = dict(masks_from_prompts(decode, masks, prompts, grid, decoder=self.model.decoder))
                image = cut_out(batch["image"][row : row + 1], grid)
                columns["image"].append(image)
                for kind, predicted in {"": masks, **found}.items():
                    if kind in PICTURES:
                        columns[PICTURES[kind]].append((image, predicted[0].cpu()))
            if columns:
                yield Pictures(name, columns)


def cut_out(square: Tensor, grid: ImageFrame) -> Tensor:
    """The normalised square [1, 3, S, S] -> the image in it on a grid, uint8 [3, H, W], on the CPU.

    On the CPU, since no GPU resizes uint8 with antialiasing.
    """
    height, width = grid.input_size
    pixels = denormalize(square.cpu())[:, :, :height, :width]
    return F.interpolate(pixels, grid.original_size, mode="bilinear", antialias=True)[0]
