"""Batches of views: everything random about them is a function of seed and position.

B photos   S pixels per side   N tokens
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sami.cache.reader import CacheReader
from sami.data.order import ShuffledOrder, locate_in_file_order
from sami.data.sources import NO_LABEL, Photo, Source
from sami.data.transforms import BrokenImage, RandomCrops, center_crop_box, crop_and_resize, image_size

Batch = dict[str, Any]
Box = tuple[int, int, int, int]  # (top, left, height, width) in pixels of the photo
PADDING = -1  # a row number that stands for no photo: it fills up the last batch of an evaluation


class TrainViews(Dataset):
    """Random crops of shuffled photos, by position.

    A batch holds `image` uint8 [B, 3, S, S], `noise` float32 [B, N] (which decides the mask), `label` int64 [B],
    `position` int64 [B], `broken`, a list of (where, why) of photos that could not be used, and with a cache the
    entries of `CacheReader.fill`. Each broken photo is replaced by another that depends on the position alone, so no
    batch is ever short.

    Args:
        source: where photos come from.
        order: which photo belongs to a position.
        seed: of crops, flips and masks.
        side: S.
        num_tokens: N.
        crops: how views are drawn.
        num_views: None draws a fresh view each time. A number K fixes K views of each photo, which take turns, an
            epoch each: what a cache with K views of this seed holds.
        cache: targets; one of views brings its first `num_views` views too, and needs the number.
    """

    max_substitutes = 50

    def __init__(
        self,
        source: Source,
        order: ShuffledOrder,
        *,
        seed: int,
        side: int,
        num_tokens: int,
        crops: RandomCrops,
        num_views: int | None = None,
        cache: CacheReader | None = None,
    ) -> None:
        self.source, self.order, self.seed = source, order, seed
        self.side, self.num_tokens = side, num_tokens
        self.crops, self.num_views, self.cache = crops, num_views, cache

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch of these positions; torch's loader hands over whole batches."""
        batch = empty_batch(len(positions), self.side, self.num_tokens, self.cache)
        batch["position"] = torch.tensor(positions)
        for row, position in enumerate(positions):
            self.fill(batch, row, position)
        return batch

    def fill(self, batch: Batch, row: int, position: int) -> None:
        """Puts the view of one position into a row of the batch.

        Raises:
            ValueError: `max_substitutes` photos in a row are broken.
        """
        place = self.order.locate(position)
        for attempt in range(1 + self.max_substitutes):
            rng = np.random.Generator(np.random.PCG64([self.seed, 3, position, attempt]))
            if attempt:
                place = locate_in_file_order(self.order.counts, int(rng.integers(self.order.counts.sum())))
            try:
                photo = self.source.read(*place)
                box, flip = self.take_view(batch, row, photo, place, position // self.order.epoch_size, rng)
                batch["image"][row] = crop_and_resize(photo.image, box, self.side, flip=flip)
            except BrokenImage as error:
                batch["broken"].append((self.source.name(*place), str(error)))
                continue
            batch["noise"][row] = torch.from_numpy(rng.random(self.num_tokens, dtype=np.float32))
            batch["label"][row] = photo.label
            return
        raise ValueError(
            f"{1 + self.max_substitutes} photos in a row cannot be used, the last is {batch['broken'][-1][0]} "
            f"({batch['broken'][-1][1]})"
        )

    def take_view(
        self, batch: Batch, index: int, photo: Photo, place: tuple[int, int], epoch: int, rng: np.random.Generator
    ) -> tuple[Box, bool]:
        """The crop box and flip of a photo in an epoch. Its target, if there is a cache, goes into the batch."""
        if self.cache is not None and not self.cache.holds_maps:
            record = self.cache.read_for(photo, *place, epoch % self.num_views)
            self.cache.fill(batch, index, record, record["box"], flip=record["flip"])
            return tuple(record["box"].tolist()), bool(record["flip"])
        if self.num_views is None:
            box, flip = self.crops.draw(image_size(photo.image), rng)
        else:
            box, flip = fixed_view(self.crops, self.seed, *place, epoch % self.num_views, photo)
        if self.cache is not None:
            self.cache.fill(batch, index, self.cache.read_for(photo, *place, 0), box, flip=flip)
        return box, flip


def fixed_view(crops: RandomCrops, seed: int, unit: int, row: int, view: int, photo: Photo) -> tuple[Box, bool]:
    """Crop box and flip of one of the fixed views of a photo: a function of seed, photo and number alone."""
    rng = np.random.Generator(np.random.PCG64([seed, 5, unit, row, view]))
    return crops.draw(image_size(photo.image), rng)


class EvalViews(Dataset):
    """The centre of each photo, by its number; batches as those of `TrainViews`, plus `valid` bool [B].

    Args: as of `TrainViews`.
    """

    center = 0.875  # of the short side is what the crop keeps; 224/256 is the custom

    def __init__(
        self, source: Source, *, seed: int, side: int, num_tokens: int, cache: CacheReader | None = None
    ) -> None:
        self.source, self.seed, self.cache = source, seed, cache
        self.side, self.num_tokens = side, num_tokens

    def __getitems__(self, rows: list[int]) -> Batch:
        """The batch of these photos; `PADDING` and broken ones are not `valid` and black."""
        batch = empty_batch(len(rows), self.side, self.num_tokens, self.cache)
        batch["position"] = torch.tensor(rows)
        batch["valid"] = torch.zeros(len(rows), dtype=torch.bool)
        for row, number in enumerate(rows):
            if number == PADDING:
                continue
            place = locate_in_file_order(self.source.counts, number)
            rng = np.random.Generator(np.random.PCG64([self.seed, 4, number]))
            try:
                photo = self.source.read(*place)
                box = center_crop_box(image_size(photo.image), self.center)
                if self.cache is not None:
                    self.cache.fill(batch, row, self.cache.read_for(photo, *place, 0), box, flip=False)
                batch["image"][row] = crop_and_resize(photo.image, box, self.side)
            except BrokenImage as error:
                batch["broken"].append((self.source.name(*place), str(error)))
                continue
            batch["noise"][row] = torch.from_numpy(rng.random(self.num_tokens, dtype=np.float32))
            batch["label"][row] = photo.label
            batch["valid"][row] = True
        return batch


def empty_batch(size: int, side: int, num_tokens: int, cache: CacheReader | None) -> Batch:
    """A batch to be filled: black images, zero noise, no labels."""
    return {
        **(cache.empty(size) if cache else {}),
        "image": torch.zeros(size, 3, side, side, dtype=torch.uint8),
        "noise": torch.zeros(size, num_tokens),
        "label": torch.full((size,), NO_LABEL, dtype=torch.int64),
        "broken": [],
    }


class PositionSampler(Sampler[list[int]]):
    """The positions of each batch of one rank, from some batch of the run to its end.

    Optimiser step s uses positions s*G .. (s+1)*G - 1, G the global batch size, whatever the number of ranks: its
    photos are dealt out as `accumulate` slices of `world_size` batches.

    Args:
        batch_size: photos of one batch on one rank.
        rank, world_size: of this process and their number.
        num_batches: batches of the whole run on one rank.
        first_batch: where to begin.
    """

    def __init__(self, *, batch_size: int, rank: int, world_size: int, num_batches: int, first_batch: int) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_batches, self.first_batch = num_batches, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first_batch, self.num_batches):
            first = (number * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        """Batches of the whole run: Lightning counts those before `first_batch` as done."""
        return self.num_batches


class EvalSampler(Sampler[list[int]]):
    """Photos dealt out to the ranks in turn, every rank as many batches as the others, the last filled with PADDING."""

    def __init__(self, num_photos: int, *, batch_size: int, rank: int, world_size: int) -> None:
        share = -(-num_photos // world_size)
        self.batches = []
        for start in range(0, share, batch_size):
            rows = [(start + i) * world_size + rank for i in range(min(batch_size, share - start))]
            self.batches.append([row if row < num_photos else PADDING for row in rows])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def pass_through(batch: Batch) -> Batch:
    """The collate function of a loader whose data set already gives batches."""
    return batch


def keep_valid(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of an evaluation batch that hold a photo."""
    valid = batch["valid"]
    return {name: value[valid] for name, value in batch.items() if isinstance(value, Tensor)}
