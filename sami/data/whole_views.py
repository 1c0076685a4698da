"""Batches of whole photos for distillation: everything random about them is a function of seed and position.

B photos   S pixels per side of the model frame   gh gw grid of tokens, N = gh*gw   Q prompts or objects per photo
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sami.cache.reader import TARGET, CacheReader
from sami.data.mask_sources import MaskSource
from sami.data.mask_views import MaskFrame, draw_noise
from sami.data.order import ShuffledOrder, locate_in_file_order
from sami.data.photo_objects import LONGEST_SIDE, PhotoObjects, draw_objects
from sami.data.sources import Photo, Source
from sami.data.transforms import BrokenImage, image_size
from sami.data.views import PADDING
from sami.ops.prompts import tight_box

PLACE_NOISE = 2  # numbers that decide a place in a photo


def content_cells(input_size: Tensor, side: int, grid_size: tuple[int, int]) -> Tensor:
    """[B, 2] (height, width) of photos in a square of S pixels -> bool [B, N]: the tokens that show any of a photo."""
    inside = []
    for extent, cells in zip(input_size.unbind(1), grid_size, strict=True):
        number = torch.arange(cells, device=input_size.device)
        inside.append(number * side < extent[:, None] * cells)  # [B, cells]: the cell begins inside the photo
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


class TrainWholeViews(Dataset):
    """Shuffled whole photos by position.

    A batch holds `image` uint8 [B, 3, S, S], `noise` float32 [B, Q, ...] (which decides the prompts),
    `input_size` int64 [B, 2], `position` int64 [B], `broken` as of `TrainViews`, and with a cache the entries of
    `CacheReader.fill`, the map as it is.

    Args:
        source: where photos come from.
        order: which photo belongs to a position.
        seed: of prompts.
        frame: the model's.
        num_prompts: Q.
        cache: maps of these photos.
    """

    max_substitutes = 50

    def __init__(
        self,
        source: Source,
        order: ShuffledOrder,
        *,
        seed: int,
        frame: MaskFrame,
        num_prompts: int,
        cache: CacheReader | None,
    ) -> None:
        self.source, self.order, self.seed, self.frame = source, order, seed, frame
        self.num_prompts, self.cache = num_prompts, cache

    def __getitems__(self, positions: list[int]) -> dict[str, Any]:
        """The batch of these positions."""
        broken: list[tuple[str, str]] = []
        entries = self.cache.empty(len(positions)) if self.cache else {}
        rows = [self.view(position, entries, index, broken) for index, position in enumerate(positions)]
        batch = {
            "image": torch.stack([image for image, _, _ in rows]),
            "noise": torch.stack([noise for _, noise, _ in rows]),
            "input_size": torch.tensor([size for _, _, size in rows]),
        }
        return {**batch, **entries, "position": torch.tensor(positions), "broken": broken}

    def view(
        self, position: int, entries: dict[str, Tensor], index: int, broken: list[tuple[str, str]]
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Image, noise and input size of one position; its map goes into row `index` of the entries.

        Raises:
            ValueError: `max_substitutes` photos in a row are broken.
        """
        place = self.order.locate(position)
        for attempt in range(1 + self.max_substitutes):
            rng = np.random.Generator(np.random.PCG64([self.seed, 7, position, attempt]))
            if attempt:
                place = locate_in_file_order(self.order.counts, int(rng.integers(self.order.counts.sum())))
            try:
                photo = self.source.read(*place)
                image = self.frame.image(photo.image, flip=False)
                fill_map(self.cache, entries, index, photo, place)
            except BrokenImage as error:
                broken.append((self.source.name(*place), str(error)))
                continue
            return image, draw_noise(rng, self.num_prompts), self.frame.of(image_size(photo.image)).input_size
        raise ValueError(
            f"{1 + self.max_substitutes} photos in a row cannot be used, the last is {broken[-1][0]} ({broken[-1][1]})"
        )


class EvalWholeViews(Dataset):
    """Whole photos of a validation set by number, with up to `num_masks` of their masks; always the same.

    Batches as those of `EvalMaskViews`, `objects` being None for photos without masks too, with the entries of a cache
    of maps, and

    - `shown` bool [B]: false for `PADDING` and broken photos.
    - `place_noise` float32 [B, Q, PLACE_NOISE], Q = num_masks, which decides places to ask at, with masks and without.
    - `box` float32 [B, Q, 2, 2], corners of the boxes of the objects, model frame, and `valid` bool [B, Q], which are.
    """

    def __init__(
        self, source: MaskSource | Source, *, seed: int, frame: MaskFrame, num_masks: int, cache: CacheReader | None
    ) -> None:
        self.source, self.seed, self.frame, self.num_masks, self.cache = source, seed, frame, num_masks, cache

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """The batch of these photos."""
        B, Q, S = len(rows), self.num_masks, self.frame.side
        entries = self.cache.empty(B) if self.cache else {}
        batch: dict[str, Any] = {
            "image": torch.zeros(B, 3, S, S, dtype=torch.uint8),
            "objects": [None] * B,
            "input_size": torch.ones(B, 2, dtype=torch.int64),
            "position": torch.tensor(rows),
            "broken": [],
            "shown": torch.zeros(B, dtype=torch.bool),
            "place_noise": torch.zeros(B, Q, PLACE_NOISE),
            "box": torch.zeros(B, Q, 2, 2),
            "valid": torch.zeros(B, Q, dtype=torch.bool),
        }
        for index, number in enumerate(rows):
            if number == PADDING:
                continue
            place = locate_in_file_order(self.source.counts, number)
            rng = np.random.Generator(np.random.PCG64([self.seed, 8, number]))
            try:
                photo = self.source.read(*place)
                objects = None
                if getattr(photo, "segmentations", None):
                    objects = draw_objects(photo, self.frame, rng, num_masks=Q)
                image = self.frame.image(photo.image, flip=False)
                fill_map(self.cache, entries, index, photo, place)
            except BrokenImage as error:
                batch["broken"].append((self.source.name(*place), str(error)))
                continue
            batch["image"][index], batch["objects"][index], batch["shown"][index] = image, objects, True
            batch["input_size"][index] = torch.tensor(self.frame.of(image_size(photo.image)).input_size)
            batch["place_noise"][index] = draw_noise(rng, Q)[:, :PLACE_NOISE]
            if objects is not None:
                batch["box"][index, : len(objects)] = boxes_of(objects)
                batch["valid"][index, : len(objects)] = True
        return {**batch, **entries}


def boxes_of(objects: PhotoObjects) -> Tensor:
    """Corners of the tightest boxes, [Q, 2, 2] in the model frame, of the grid that validation measures on."""
    grid = objects.frame.shrunk(LONGEST_SIDE)
    return torch.cat(
        [grid.to_model(tight_box(objects.take(slice(q, q + 1), grid)[0])[0][0]) for q in range(len(objects))]
    )


def fill_map(
    cache: CacheReader | None, entries: dict[str, Tensor], index: int, photo: Photo, place: tuple[int, int]
) -> None:
    """Puts the whole map of a photo, padding and all, into a row of a batch.

    Raises:
        BrokenImage: see `CacheReader.read_for`.
    """
    if cache is None:
        return
    record = cache.read_for(photo, *place, 0)
    cache.fill(entries, index, record, record["box"], flip=False)
    entries[f"{TARGET}region"][index] = torch.tensor([0, 0, *cache.manifest["grid"]])
