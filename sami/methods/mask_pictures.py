"""Predicted masks beside the true ones, as one picture per validation set and validation.

B images   Q objects per image   S pixels per side
"""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from sami.data.masked_photos import content_mask
from sami.data.transforms import denormalize
from sami.data.whole_file import whole_file
from sami.methods.mask_validation import masks_from_prompts
from sami.ops.masks import squared_depth

COLUMNS = {"box": "from the box", "click_1": "from 1 click", "click_5": "from 5 clicks"}
TITLE_HEIGHT = 16  # pixels
COLORS = torch.tensor(
    [[255, 64, 64], [64, 160, 255], [64, 220, 64], [255, 200, 0], [220, 64, 255], [0, 230, 230], [255, 130, 0]]
)


class MaskPictures(pl.Callback):
    """Draws photo, true masks, and those from a box, one click and five clicks, an object in one colour throughout.

    Args:
        folder: where `step_00001234.png` goes, with the set's name in front where there are several.
        num_images: rows, spread over the validation set.
        num_masks: objects that are drawn of each photo; more would hide each other.
    """

    def __init__(self, folder: str, *, num_images: int, num_masks: int) -> None:
        self.folder, self.num_images, self.num_masks = Path(folder), num_images, num_masks

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for name in trainer.datamodule.val_sources:
            sheet = self.draw(trainer, pl_module, name)
            if sheet is None:
                continue
            place = f"{name}_step" if name else "step"
            with whole_file(self.folder / f"{place}_{trainer.global_step:08d}.png") as file:
                sheet.save(file, "PNG")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"masks/{name}" if name else "masks", [sheet], step=trainer.global_step)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> Image.Image | None:
        """The picture of one validation set, None without a photo."""
        batch = trainer.datamodule.spread_val_batch(name, self.num_images)
        keep = batch["valid"].any(dim=1)
        if not keep.any():
            return None
        kept = {key: value[keep].to(pl_module.device) for key, value in batch.items() if isinstance(value, Tensor)}
        masks, noise, valid = (kept[key][:, : self.num_masks] for key in ("masks", "noise", "valid"))
        content = content_mask(kept["input_size"], masks.shape[-1])
        with trainer.precision_plugin.val_step_context():
            decode = pl_module.decoder(kept["image"])
            found = dict(masks_from_prompts(decode, masks, noise, content, multimask=pl_module.protocol.multimask))
        photo = denormalize(kept["image"]).cpu()
        shown = {"photo": None, "true masks": masks, **{title: found[kind] for kind, title in COLUMNS.items()}}
        columns = [
            photo if drawn is None else paint(photo, (drawn & valid[..., None, None]).cpu()) for drawn in shown.values()
        ]
        return draw_sheet(columns, tuple(shown))


def paint(photo: Tensor, masks: Tensor) -> Tensor:
    """uint8 [B, 3, S, S], bool [B, Q, S, S] -> uint8: each mask as a tint with an outline two pixels wide."""
    pixels = photo.float()
    outline = masks & (squared_depth(masks) <= 4)
    for number in range(masks.shape[1]):
        color = COLORS[number % len(COLORS)].float().view(1, 3, 1, 1)
        tint, edge = masks[:, number : number + 1], outline[:, number : number + 1]
        pixels = torch.where(tint, 0.6 * pixels + 0.4 * color, pixels)
        pixels = torch.where(edge, color, pixels)
    return pixels.round().byte()


def draw_sheet(columns: list[Tensor], titles: tuple[str, ...]) -> Image.Image:
    """One row per image; columns: uint8 [B, 3, S, S] each."""
    side = columns[0].shape[-1]
    rows = torch.cat(columns, dim=3).permute(0, 2, 3, 1).flatten(0, 1)  # [B*S, columns*S, 3]
    sheet = Image.new("RGB", (rows.shape[1], rows.shape[0] + TITLE_HEIGHT), "white")
    sheet.paste(Image.fromarray(np.ascontiguousarray(rows.numpy())), (0, TITLE_HEIGHT))
    for number, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((number * side + 4, 2), title, fill="black")
    return sheet
