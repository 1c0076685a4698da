"""Images and masks of a validation on one sheet."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from sami.methods.base import Cell
from sami.predict.overlay import draw_masks

TITLE_HEIGHT = 16  # pixels


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
