"""Predicted masks beside the true ones, as one picture per validation set and validation.

Q objects of one photo   H W pixels of a grid over the photo
"""

from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from sami.data.transforms import denormalize
from sami.data.whole_file import whole_file
from sami.methods.mask_validation import masks_from_prompts, point_at
from sami.ops.frames import ImageFrame

COLUMNS = {"box": "from the box", "click_1": "from 1 click", "click_5": "from 5 clicks"}
TITLE_HEIGHT = 16  # pixels
COLORS = torch.tensor(
    [[255, 64, 64], [64, 160, 255], [64, 220, 64], [255, 200, 0], [220, 64, 255], [0, 230, 230], [255, 130, 0]]
)


class ValidationPictures(pl.Callback):
    """Writes what `draw` makes of each validation set, after every validation, and shows it to W&B.

    Args:
        folder: where `step_00001234.png` goes, with the set's name in front where there are several.
        num_images: rows, spread over the validation set.
        num_masks: objects that are drawn of each photo; more would hide each other.
    """

    title: str  # under which W&B shows them

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
                    logger.log_image(f"{self.title}/{name}".rstrip("/"), [sheet], step=trainer.global_step)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> Image.Image | None:
        """The picture of one validation set, None without a photo."""
        raise NotImplementedError


class MaskPictures(ValidationPictures):
    """Draws photo, true masks, and those from a box, one click and five clicks, an object in one colour throughout."""

    title = "masks"

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> Image.Image | None:
        """The picture of one validation set, None without a photo."""
        batch = trainer.datamodule.spread_val_batch(name, self.num_images)
        batch["image"] = batch["image"].to(pl_module.device)
        rows = []
        with trainer.precision_plugin.val_step_context():
            for row, objects, decode in pl_module.each_photo(batch):
                grid = objects.frame.shrunk(objects.frame.image_size)
                masks, noise = (tensor.to(pl_module.device) for tensor in objects.take(slice(self.num_masks), grid))
                answers = masks_from_prompts(
                    decode, masks, point_at(masks, noise), grid, several_for=pl_module.model.several_for
                )
                found = {"true masks": masks, **dict(answers)}
                photo = photo_of(batch["image"][row : row + 1], grid)
                shown = [paint(photo, found[kind][0].cpu()) for kind in ("true masks", *COLUMNS)]
                rows.append([photo, *shown])
        return draw_sheet(rows, ("photo", "true masks", *COLUMNS.values())) if rows else None


def photo_of(image: Tensor, grid: ImageFrame) -> Tensor:
    """The normalised square [1, 3, S, S] -> the photo in it on a grid, uint8 [3, H, W], on the CPU.

    Where it is, since no GPU resizes uint8 with antialiasing.
    """
    height, width = grid.input_size
    photo = denormalize(image.cpu())[:, :, :height, :width]
    return F.interpolate(photo, grid.original_size, mode="bilinear", antialias=True)[0]


def paint(photo: Tensor, masks: Tensor) -> Tensor:
    """uint8 [3, H, W], bool [Q, H, W] -> uint8: each mask as a tint with an outline two pixels wide."""
    pixels = photo.float()
    near_outside = F.max_pool2d((~masks).float(), 5, stride=1, padding=2) > 0
    for number, (mask, edge) in enumerate(zip(masks, masks & near_outside, strict=True)):
        color = COLORS[number % len(COLORS)].float().view(3, 1, 1)
        pixels = torch.where(mask, 0.6 * pixels + 0.4 * color, pixels)
        pixels = torch.where(edge, color, pixels)
    return pixels.round().byte()


def draw_sheet(rows: list[list[Tensor]], titles: tuple[str, ...]) -> Image.Image:
    """A row for each photo, of pictures of its size: uint8 [3, H, W] each."""
    width, heights = max(row[0].shape[2] for row in rows), [row[0].shape[1] for row in rows]
    sheet = Image.new("RGB", (width * len(titles), sum(heights) + TITLE_HEIGHT), "white")
    top = TITLE_HEIGHT
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), (column * width, top))
        top += height
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * width + 4, 2), title, fill="black")
    return sheet
