"""What a model makes of validation images, to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from sami.files import whole_file
from sami.methods.base import Cell, Method
from sami.predict.overlay import draw_masks

TITLE_HEIGHT = 16  # pixels


class ValidationPictures(pl.Callback):
    """Draws `Method.validation_pictures` of each validation set, after every validation, and shows them to W&B.

    Args:
        folder: where `step_00001234.png` goes, with the set's name in front where there are several.
        num_images: rows, spread over the validation set.
        num_masks: objects that are drawn of each image; more would hide each other.
    """

    def __init__(self, folder: str, *, num_images: int, num_masks: int) -> None:
        self.folder, self.num_images, self.num_masks = Path(folder), num_images, num_masks

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        with trainer.precision_plugin.val_step_context():
            for name, columns in pl_module.validation_pictures(self.num_images, self.num_masks):
                sheet = draw_sheet(columns)
                label = f"{name}_" if name else ""
                with whole_file(self.folder / f"{label}step_{trainer.global_step:08d}.png") as file:
                    sheet.save(file, "PNG")
                for logger in trainer.loggers:
                    if isinstance(logger, WandbLogger):
                        logger.log_image(f"pictures/{name}".rstrip("/"), [sheet], step=trainer.global_step)


def draw_sheet(columns: Mapping[str, Sequence[Cell] | Tensor]) -> Image.Image:
    """A column under each title, a row for each image, whose cells are of one size."""
    rows = [[draw_cell(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    width, heights = max(row[0].width for row in rows), [row[0].height for row in rows]
    sheet = Image.new("RGB", (width * len(columns), sum(heights) + TITLE_HEIGHT), "white")
    for column, title in enumerate(columns):
        ImageDraw.Draw(sheet).text((column * width + 4, 2), title, fill="black")
    top = TITLE_HEIGHT
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width, top))
        top += height
    return sheet


def draw_cell(cell: Cell) -> Image.Image:
    """An image uint8 [3, H, W], with masks bool [Q, H, W] on it if there are any, as `draw_masks` paints them."""
    image, masks = cell if isinstance(cell, tuple) else (cell, None)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return Image.fromarray(pixels) if masks is None else draw_masks(pixels, masks.numpy())
