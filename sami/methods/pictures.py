"""What the student sees and what it makes of it, as one picture per validation.

B images   N tokens   gh gw token grid   E target width
"""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from sami.data.datasets import keep_valid
from sami.data.transforms import denormalize
from sami.data.whole_file import whole_file
from sami.ops.masking import split_by_noise
from sami.ops.pca import fit_pca

COLUMNS = ("input", "visible", "teacher", "student")
TITLE_HEIGHT = 16  # pixels
GREY = 128


class FeaturePictures(pl.Callback):
    """Draws input, visible patches, and teacher and student features as colours in one basis.

    Where the loss is on masked tokens only, nothing trains what the student says of visible ones, and they stay grey.

    Args:
        folder: where `step_00001234.png` goes.
        num_images: rows, spread over the validation set.
    """

    def __init__(self, folder: str, *, num_images: int) -> None:
        self.folder, self.num_images = Path(folder), num_images

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        batch = keep_valid(trainer.datamodule.spread_val_batch("", self.num_images))
        batch = {name: value.to(pl_module.device) for name, value in batch.items()}
        if len(batch["image"]) == 0:
            return
        split = split_by_noise(batch["noise"], pl_module.mask_ratio)
        with trainer.precision_plugin.val_step_context():
            target = pl_module.target(batch)  # [B, N, E]
            prediction = pl_module.student(batch["image"], split)  # [B, N, E]
        teacher, student = pca_colors(target.float(), prediction.float())  # [B, N, 3] each
        if pl_module.loss_tokens == "masked":
            student = student.scatter(1, split.ids_keep.unsqueeze(-1).expand(-1, -1, 3), GREY)
        sheet = draw_sheet(
            denormalize(batch["image"]).cpu(),
            split.ids_keep.cpu(),
            teacher.cpu(),
            student.cpu(),
            grid_size=pl_module.student.encoder.grid_size,
        )
        with whole_file(self.folder / f"step_{trainer.global_step:08d}.png") as file:
            sheet.save(file, "PNG")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("features", [sheet], step=trainer.global_step)


def pca_colors(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, E] twice -> uint8 [B, N, 3] twice: the first three principal components of the target, as RGB.

    Both are projected on the target's components and scaled by the target's range, so equal colours are equal
    features, and a student that predicts the mean is grey. With a basis for each, any student would look fine.
    """
    mean, basis = (part.double() for part in fit_pca(target.flatten(0, 1), 3))  # [E], [E, 3]
    projected = (target.flatten(0, 1).double() - mean) @ basis  # [B*N, 3]
    low, high = projected.quantile(0.01, dim=0), projected.quantile(0.99, dim=0)
    return tuple(
        ((((features.double() - mean) @ basis) - low) / (high - low).clamp_min(1e-12))
        .clamp(0, 1)
        .mul(255)
        .round()
        .byte()
        for features in (target, prediction)
    )


def draw_sheet(
    image: Tensor, ids_keep: Tensor, teacher: Tensor, student: Tensor, *, grid_size: tuple[int, int]
) -> Image.Image:
    """One row per image, the columns of `COLUMNS`.

    Args:
        image: uint8 [B, 3, H, W].
        ids_keep: [B, V] visible tokens.
        teacher, student: uint8 [B, N, 3] colours of tokens.
    """
    B, _, H, W = image.shape
    gh, gw = grid_size
    shown = torch.zeros(B, gh * gw, dtype=torch.bool).scatter_(1, ids_keep, True)
    shown = enlarge(shown.unsqueeze(-1).byte(), grid_size, (H, W)).bool()  # [B, H, W, 1]
    pixels = image.permute(0, 2, 3, 1)  # [B, H, W, 3]
    visible = torch.where(shown, pixels, torch.full_like(pixels, GREY))
    columns = [pixels, visible, enlarge(teacher, grid_size, (H, W)), enlarge(student, grid_size, (H, W))]
    rows = torch.cat(columns, dim=2).flatten(0, 1)  # [B*H, 4*W, 3]
    sheet = Image.new("RGB", (rows.shape[1], rows.shape[0] + TITLE_HEIGHT), "white")
    sheet.paste(Image.fromarray(np.ascontiguousarray(rows.numpy())), (0, TITLE_HEIGHT))
    for number, title in enumerate(COLUMNS):
        ImageDraw.Draw(sheet).text((number * W + 4, 2), title, fill="black")
    return sheet


def enlarge(tokens: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """uint8 [B, N, C] -> [B, H, W, C], each token a block of pixels."""
    (gh, gw), (H, W) = grid_size, size
    return tokens.unflatten(1, (gh, gw)).repeat_interleave(H // gh, 1).repeat_interleave(W // gw, 2)
