"""Batches of photos with masks: everything random about them is a function of seed and position.

B photos   Q objects per photo   H W pixels of a photo   S pixels per side of the model frame
s cells per side of masks
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sami.data.images import BrokenImage, decode_image, image_size
from sami.data.mask_sources import MaskedPhoto, MaskSource
from sami.data.order import ShuffledOrder, locate_in_file_order
from sami.data.segmentations import segmentation_counts
from sami.ops.frames import Frame, frame_of
from sami.ops.rle import Window, counts_to_box, mask_cells

NUM_NOISE = 32  # uniform numbers per object, from which prompts are drawn


class MaskFrame(NamedTuple):
    """The square the model sees, and the grid that masks are compared on."""

    side: int  # S
    mask_side: int  # s
    resize_mode: str  # "stretch" or "pad", see `sami.ops.frames`
    max_area: float  # of the photo; larger masks are dropped

    def of(self, size: tuple[int, int]) -> Frame:
        """Where a photo of this (H, W) lies in the square."""
        return frame_of(size, self.side, resize_mode=self.resize_mode)

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
        pixels = pixels[top : top + height, left : left + width]  # of a photo decoded smaller, all of it
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

        Left out are masks above `max_area` of the photo, those without a pixel in the window, and those that fill more
        of it than `max_area`. Of a whole photo, which ones does not depend on `side` and `mask_side`. The code is not
        decoded: see `mask_coverage`.

        Raises:
            BrokenImage: see `segmentation_counts`.
        """
        counts = segmentation_counts(segmentation, size)
        if counts[1::2].sum() > self.max_area * size[0] * size[1]:
            return None
        top, left, height, width = window or (0, 0, *size)
        cell = self.side / self.mask_side  # model pixels
        borders, scale = [], []
        for own, new in zip((height, width), self.of((height, width)).input_size, strict=True):
            number = math.ceil(new / cell)  # of cells with photo in them
            borders.append(torch.arange(number + 1, dtype=torch.float64) * (cell * own / new))
            scale.append(new / own / cell)  # cells per pixel of the photo
        rows, columns = borders
        columns = left + width - columns if flip else left + columns
        masks = mask_cells(counts, size, top + rows, columns, window)  # beyond a window's edge the photo goes on
        if window and masks.float().mean() > self.max_area:
            return None
        masks = F.pad(masks, (0, self.mask_side - masks.shape[1], 0, self.mask_side - masks.shape[0]))
        x0, y0, x1, y1 = counts_to_box(counts, size, window).tolist()
        x0, x1 = (left + width - x1, left + width - x0) if flip else (x0 - left, x1 - left)
        box = torch.tensor([x0 * scale[1], (y0 - top) * scale[0], x1 * scale[1], (y1 - top) * scale[0]])
        return (masks, box) if masks.any() else None


class View(NamedTuple):
    """One photo of a batch."""

    image: Tensor  # uint8 [3, S, S]
    masks: list[Tensor]  # bool [s, s] each
    boxes: list[Tensor]  # [4] each, see `MaskFrame.mask`
    input_size: tuple[int, int]


def make_view(
    photo: MaskedPhoto,
    frame: MaskFrame,
    rng: np.random.Generator,
    *,
    num_masks: int,
    flip: float,
    min_crop: float = 1.0,
) -> View:
    """The photo or a window of it, and up to `num_masks` of its masks, drawn at random; only these are decoded.

    The window is anywhere, see `draw_window`; one that no mask reaches into is given up for the whole photo.

    Raises:
        BrokenImage: the image or one of the masks that were drawn cannot be used, or no mask is left.
    """
    size, upright = photo.raster()
    flipped = bool(rng.random() < flip)
    order = rng.permutation(len(photo.segmentations))
    window = draw_window(size, rng, min_area=min_crop) if min_crop < 1 else None
    for place in (window, None) if window else (None,):
        found: list[tuple[Tensor, Tensor]] = []
        for number in order:
            if len(found) == num_masks:
                break
            mask = frame.mask(photo.segmentations[number], size, flip=flipped, window=place)
            if mask is not None:
                found.append(mask)
        if found:
            image = frame.image(photo.image, flip=flipped, window=place, upright=upright)
            masks, boxes = (list(part) for part in zip(*found, strict=True))
            return View(image, masks, boxes, frame.of(place[2:] if place else size).input_size)
    raise BrokenImage(f"none of its {len(photo.segmentations)} masks can be used: too large, or empty")


def draw_window(size: tuple[int, int], rng: np.random.Generator, *, min_area: float) -> Window:
    """A part of a photo of this (H, W) and of its shape, anywhere, with at least this fraction of its area.

    The logarithm of the area is uniform, so that every magnification comes as often as any other.
    """
    side = min_area ** (rng.random() / 2)
    height, width = (max(1, round(own * side)) for own in size)
    return int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1)), height, width


class TrainMaskViews(Dataset):
    """Shuffled photos with some of their masks, by position.

    A batch holds `image` uint8 [B, 3, S, S], `masks` bool [B, Q, s, s], `boxes` float32 [B, Q, 4] (see
    `MaskFrame.mask`), `valid` bool [B, Q] (photos with fewer than Q masks have rows that are none), `noise` float32
    [B, Q, NUM_NOISE] (which decides the prompts), `input_size` int64 [B, 2], `position` int64 [B], and `broken`, a list
    of (where, why) of photos that could not be used. Each of those is replaced by another photo that depends on the
    position alone.

    Args:
        source: where photos come from.
        order: which photo belongs to a position.
        seed: of masks, flips and prompts.
        frame: the model's.
        num_masks: of a photo, at most.
        flip: probability of mirroring.
        min_crop: see `draw_window`; 1 for whole photos.
    """

    max_substitutes = 50

    def __init__(
        self,
        source: MaskSource,
        order: ShuffledOrder,
        *,
        seed: int,
        frame: MaskFrame,
        num_masks: int,
        flip: float,
        min_crop: float = 1.0,
    ) -> None:
        self.source, self.order, self.seed, self.frame = source, order, seed, frame
        self.drawn = {"num_masks": num_masks, "flip": flip, "min_crop": min_crop}
        self.num_masks = num_masks

    def __getitems__(self, positions: list[int]) -> dict[str, Any]:
        """The batch of these positions; torch's loader hands over whole batches."""
        broken: list[tuple[str, str]] = []
        rows = [self.view(position, broken) for position in positions]
        return collate(rows, self.frame, positions, broken)

    def view(self, position: int, broken: list[tuple[str, str]]) -> tuple[View, Tensor]:
        """The view of one position and its noise [num_masks, NUM_NOISE].

        Raises:
            ValueError: `max_substitutes` photos in a row are broken.
        """
        place = self.order.locate(position)
        for attempt in range(1 + self.max_substitutes):
            rng = np.random.Generator(np.random.PCG64([self.seed, 5, position, attempt]))
            if attempt:
                place = locate_in_file_order(self.order.counts, int(rng.integers(self.order.counts.sum())))
            try:
                photo = self.source.read(*place)
                view = make_view(photo, self.frame, rng, **self.drawn)
            except BrokenImage as error:
                broken.append((self.source.name(*place), str(error)))
                continue
            return view, draw_noise(rng, self.num_masks)
        raise ValueError(
            f"{1 + self.max_substitutes} photos in a row cannot be used, the last is {broken[-1][0]} "
            f"({broken[-1][1]}): this is not a data set of photos with masks"
        )


def draw_noise(rng: np.random.Generator, num_masks: int) -> Tensor:
    """[num_masks, NUM_NOISE] uniform in [0, 1)."""
    return torch.from_numpy(rng.random((num_masks, NUM_NOISE), dtype=np.float32))


def collate(
    views: list[tuple[View, Tensor]], frame: MaskFrame, positions: list[int], broken: list[tuple[str, str]]
) -> dict[str, Any]:
    """The batch of `TrainMaskViews`; Q is that of the photo with most masks."""
    B, Q, s = len(views), max(1, *(len(view.masks) for view, _ in views)), frame.mask_side
    batch = {
        "image": torch.stack([view.image for view, _ in views]),
        "masks": torch.zeros(B, Q, s, s, dtype=torch.bool),
        "boxes": torch.zeros(B, Q, 4),
        "valid": torch.zeros(B, Q, dtype=torch.bool),
        "noise": torch.zeros(B, Q, NUM_NOISE),
        "input_size": torch.tensor([view.input_size for view, _ in views]),
        "position": torch.tensor(positions),
        "broken": broken,
    }
    for row, (view, noise) in enumerate(views):
        count = len(view.masks)
        if count:
            batch["masks"][row, :count] = torch.stack(view.masks)
            batch["boxes"][row, :count] = torch.stack(view.boxes)
            batch["valid"][row, :count] = True
            batch["noise"][row, :count] = noise[:count]
    return batch
