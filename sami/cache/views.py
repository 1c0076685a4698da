"""Data set of what a teacher sees when a cache is written: fixed crops of images, or whole padded images.

B images   S pixels per side
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sami.cache.layout import ShardPart
from sami.cache.records import HEAD
from sami.data.crops import CENTER, TRANSFORM_VERSION, RandomCrops, center_crop_box, crop_and_resize, resize_and_pad
from sami.data.datasets import Batch
from sami.data.decode import BrokenImage, image_size
from sami.data.sampling import fixed_view
from sami.data.sources.base import Source
from sami.ops.frames import longest_side_frame

ViewIndex = tuple[int, int, int]  # unit, row, view


class ViewsToCache(Dataset):
    """Images as the teacher is to see them, by index; broken ones are black.

    A batch holds `image` uint8 [B, 3, S, S], `head`, an array of dtype `HEAD` [B], `indices` and `keys`, lists of B,
    and `broken`, a list of (where, why).

    Args:
        source: where images come from.
        image_size: S.
        crops: for the fixed views of training. None: the centre of each image, as validation sees it.
        seed: of the crops.
        whole: the whole image, padded to a square, instead of either.
    """

    def __init__(
        self, source: Source, *, image_size: int, crops: RandomCrops | None, seed: int, whole: bool = False
    ) -> None:
        self.source, self.image_size, self.seed, self.whole = source, image_size, seed, whole
        self.crops = None if whole else crops

    def describe(self) -> dict[str, Any]:
        """What the views depend on, besides the images and `image_size`; an entry of the cache's recipe."""
        if self.whole:
            return {"version": TRANSFORM_VERSION, "whole": "longest side, padded"}
        if self.crops is None:
            return describe_center()
        return describe_crops(self.crops, seed=self.seed)

    def __getitems__(self, indices: list[ViewIndex]) -> Batch:
        """The batch of these views."""
        head = np.zeros(len(indices), dtype=HEAD)
        image = torch.zeros(len(indices), 3, self.image_size, self.image_size, dtype=torch.uint8)
        broken = []
        for number, (unit, row, view) in enumerate(indices):
            one = head[number]  # a view into the array
            one["row"], one["view"] = row, view
            try:
                data = self.source.read(unit, row).image
                size = image_size(data)
                if self.whole:
                    box, flip = (0, 0, *size), False
                    image[number] = resize_and_pad(data, self.image_size)
                else:
                    box, flip = center_crop_box(size, CENTER), False
                    if self.crops is not None:
                        box, flip = fixed_view(self.crops, self.seed, unit, row, view, size)
                    image[number] = crop_and_resize(data, box, self.image_size, flip=flip)
            except BrokenImage as error:
                broken.append((self.source.name(unit, row), str(error)))
                continue
            one["photo"], one["size"], one["box"], one["flip"] = zlib.crc32(data), size, box, flip
            one["valid"] = True
        keys = [self.source.key(unit, row) for unit, row, _ in indices]
        return {"image": image, "head": head, "indices": indices, "keys": keys, "broken": broken}

    def valid_tokens(self, head: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """[B, N] bool: the tokens that show an image; not those of broken ones, and not the padding around whole ones.

        Args:
            head: of a batch.
            grid: tokens of an image.
        """
        token_valid = torch.zeros(len(head), *grid, dtype=torch.bool)
        for one, entry in zip(token_valid, head, strict=True):
            if entry["valid"]:
                frame = longest_side_frame(entry["size"].tolist(), self.image_size)
                height, width = frame.input_size if self.whole else (self.image_size, self.image_size)
                one[: -(-height * grid[0] // self.image_size), : -(-width * grid[1] // self.image_size)] = True
        return token_valid.flatten(1)


class ShardSampler(Sampler[list[ViewIndex]]):
    """The views of some shards, one shard after another, in batches that end with their shard.

    So the bytes of a shard do not depend on which others were written in the same run.
    """

    def __init__(self, parts: list[ShardPart], *, batch_size: int) -> None:
        self.parts, self.batch_size = parts, batch_size

    def __iter__(self) -> Iterator[list[ViewIndex]]:
        for part in self.parts:
            rows = range(part.first_row, part.first_row + part.num_images)
            for start in range(0, part.num_images, self.batch_size):
                yield [(part.unit, row, part.view) for row in rows[start : start + self.batch_size]]

    def __len__(self) -> int:
        return sum(-(-part.num_images // self.batch_size) for part in self.parts)


def describe_center() -> dict[str, Any]:
    """What the views of validation depend on."""
    return {"version": TRANSFORM_VERSION, "center": CENTER}


def describe_crops(crops: RandomCrops, *, seed: int) -> dict[str, Any]:
    """What the fixed views of training depend on."""
    scale, ratio = ([float(bound) for bound in bounds] for bounds in (crops.scale, crops.ratio))
    return {"version": TRANSFORM_VERSION, "scale": scale, "ratio": ratio, "flip": crops.flip, "seed": seed}
