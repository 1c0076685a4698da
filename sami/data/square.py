"""Whole images in the model's square, padded or stretched, and what fine-tuning and distillation ask of their data.

B images   H W pixels of an image   S pixels per side of the model's square   s cells per side of masks
gh gw grid of tokens, N = gh*gw
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sami.data.datasets import Batch, Row
from sami.data.decode import decode_image, image_size
from sami.data.loading import ImageData
from sami.data.sources.annotations import segmentation_counts
from sami.data.sources.base import AnySource
from sami.ops.frames import ImageFrame, frame_of
from sami.ops.rle import Window, counts_to_box, mask_cells


@dataclass(frozen=True)
class FrameSpec:
    """The square that the model sees, and the cells that masks are compared on.

    Raises:
        ValueError: an unknown `resize_mode`.
    """

    image_size: int  # S
    mask_size: int  # s
    resize_mode: str  # "stretch" or "pad", see `sami.ops.frames`
    max_area: float = 1.0  # of the image; larger masks are dropped

    def __post_init__(self) -> None:
        if self.resize_mode not in ("stretch", "pad"):
            raise ValueError(f"resize_mode={self.resize_mode!r}: choose stretch or pad")

    def blank(self) -> Row:
        """What a batch has of an image that is not there."""
        image = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
        return {"image": image, "input_size": torch.ones(2, dtype=torch.int64)}

    def of(self, size: tuple[int, int]) -> ImageFrame:
        """Where an image of this (H, W) lies in the square."""
        return frame_of(size, self.image_size, resize_mode=self.resize_mode)

    def image(self, data: bytes, *, flip: bool, window: Window | None = None, upright: bool = True) -> Tensor:
        """uint8 [3, S, S] of an image file or a window of it, resized as for prediction; black where it is padding.

        Raises:
            BrokenImage: see `decode_image`.
        """
        size = image_size(data, upright=upright)
        top, left, height, width = window or (0, 0, *size)
        frame = self.of((height, width))
        # at least twice the pixels that are needed, so that an antialiased resize does the last halving
        shrink = max(new / own for new, own in zip(frame.input_size, size, strict=True))
        min_scale = 1.0 if frame.stretch or window else min(1.0, 2 * shrink)
        pixels = decode_image(data, min_scale=min_scale, upright=upright)
        pixels = pixels[top : top + height, left : left + width]  # of an image decoded smaller, all of it
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)  # [3, H', W'], channels last
        image = frame.resize(image[None])[0]
        image = image if image.dtype == torch.uint8 else image.round().byte()
        return frame.pad(image.flip(-1) if flip else image)

    def mask(
        self, segmentation: Any, size: tuple[int, int], *, flip: bool, window: Window | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """bool [s, s]: the cells of the mask, see `mask_cells`; and [4], the tightest box around its pixels, in cells
        and fractions of them. None for a mask to be left out.

        A box around the cells would be another: a mask loses the cells that it covers less than half, and of an object
        of a few cells that is a lot.

        Left out are masks above `max_area` of the image, those without a pixel in the window, and those that fill more
        of it than `max_area`. Of a whole image, which ones does not depend on `image_size` and `mask_size`. The code is
        not decoded: see `mask_coverage`.

        Raises:
            BrokenImage: see `segmentation_counts`.
        """
        counts = segmentation_counts(segmentation, size)
        if counts[1::2].sum() > self.max_area * size[0] * size[1]:
            return None
        top, left, height, width = window or (0, 0, *size)
        cell = self.image_size / self.mask_size  # model pixels
        borders, scale = [], []
        for own, new in zip((height, width), self.of((height, width)).input_size, strict=True):
            number = math.ceil(new / cell)  # of cells with image in them
            borders.append(torch.arange(number + 1, dtype=torch.float64) * (cell * own / new))
            scale.append(new / own / cell)  # cells per pixel of the image
        rows, columns = borders
        columns = left + width - columns if flip else left + columns
        masks = mask_cells(counts, size, top + rows, columns, window)  # beyond a window's edge the image goes on
        if window and masks.float().mean() > self.max_area:
            return None
        masks = F.pad(masks, (0, self.mask_size - masks.shape[1], 0, self.mask_size - masks.shape[0]))
        x0, y0, x1, y1 = counts_to_box(counts, size, window).tolist()
        x0, x1 = (left + width - x1, left + width - x0) if flip else (x0 - left, x1 - left)
        box = torch.tensor([x0 * scale[1], (y0 - top) * scale[0], x1 * scale[1], (y1 - top) * scale[0]])
        return (masks, box) if masks.any() else None


def content_mask(input_size: Tensor, image_size: int) -> Tensor:
    """[B, 2] (height, width) -> bool [B, 1, S, S], true where there is image and no padding."""
    return content_cells(input_size, image_size, (image_size, image_size)).view(-1, 1, image_size, image_size)


def content_cells(input_size: Tensor, image_size: int, grid_size: tuple[int, int]) -> Tensor:
    """[B, 2] (height, width) of images in a square of S pixels -> bool [B, N]: the tokens that show any of an image."""
    inside = []
    for extent, cells in zip(input_size.unbind(1), grid_size, strict=True):
        number = torch.arange(cells, device=input_size.device)
        inside.append(number * image_size < extent[:, None] * cells)  # [B, cells]: the cell begins inside the image
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


class SquareImageData(ImageData):
    """`ImageData` in the model's square.

    Args:
        train: where images to train on come from.
        val: a set, or several by name ({"coco": ..., "mine": ...}), each with numbers of its own; None: no validation.
        open_val: opens one of them.
        spec: of the model's square.
        loading: of `ImageData`.

    Raises:
        ValueError: see `open_val` and `ImageData`.
    """

    def __init__(
        self, train: AnySource, val: Any, open_val: Callable[[Any], AnySource], spec: FrameSpec, **loading: int
    ) -> None:
        named = val if isinstance(val, Mapping) and "annotations" not in val else {"": val} if val else {}
        super().__init__(train, {name: open_val(where) for name, where in named.items()}, **loading)
        self.spec = spec

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalised, and zero in the padding, as SAM has it."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {**batch, "image": batch["image"] * content_mask(batch["input_size"], self.spec.image_size)}
