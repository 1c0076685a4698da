"""What a model makes of validation images, to look at."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger

from sami.callbacks.drawing import draw_sheet
from sami.files import whole_file
from sami.methods.base import Method


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
                with whole_file(
                    self.folder / f"{f'{name}_' if name else ''}step_{trainer.global_step:08d}.png"
                ) as file:
                    sheet.save(file, "PNG")
                for logger in trainer.loggers:
                    if isinstance(logger, WandbLogger):
                        logger.log_image(f"pictures/{name}".rstrip("/"), [sheet], step=trainer.global_step)
