"""What a teacher sees when a cache is written: fixed views of images, or whole images.

B images   S pixels per side
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sami.cache.layout import ShardPart
from sami.cache.records import HEAD
from sami.data.crops import (
    CENTER,
    TRANSFORM_VERSION,
    RandomCrops,
    center_crop_box,
    crop_and_resize,
    image_checksum,
    resize_and_pad,
)
from sami.data.datasets import Batch
from sami.data.images import BrokenImage, image_size
from sami.data.sampling import fixed_view
from sami.data.sources.base import Source
from sami.ops.frames import longest_side_frame

Place = tuple[int, int, int]  # unit, row, view


class ViewsToCache(Dataset):
    """Images as the teacher is to see them, by place; broken ones are black.

    A batch holds `image` uint8 [B, 3, S, S], `head`, an array of dtype `HEAD` [B], `places` and `keys`, lists of B,
    and `broken`, a list of (where, why).

    Args:
        source: where images come from.
        side: S.
        crops: for the fixed views of training. None: the centre of each image, as validation sees it.
        seed: of the crops.
        whole: the whole image, padded to a square, instead of either.
    """

    def __init__(self, source: Source, *, side: int, crops: RandomCrops | None, seed: int, whole: bool = False) -> None:
        self.source, self.side, self.seed, self.whole = source, side, seed, whole
        self.crops = None if whole else crops

    def describe(self) -> dict[str, Any]:
        """What the views depend on, besides the images and `side`; an entry of the cache's recipe."""
        if self.whole:
            return {"version": TRANSFORM_VERSION, "whole": "longest side, padded"}
        if self.crops is None:
            return describe_center()
        return describe_crops(self.crops, seed=self.seed)

    def __getitems__(self, places: list[Place]) -> Batch:
        """The batch of these places."""
        head = np.zeros(len(places), dtype=HEAD)
        image = torch.zeros(len(places), 3, self.side, self.side, dtype=torch.uint8)
        broken = []
        for index, (unit, row, view) in enumerate(places):
            head[index]["row"], head[index]["view"] = row, view
            try:
                data = self.source.read(unit, row).image
                size = image_size(data)
                if self.whole:
                    box, flip = (0, 0, *size), False
                    image[index] = resize_and_pad(data, self.side)
                else:
                    box, flip = center_crop_box(size, CENTER), False
                    if self.crops is not None:
                        box, flip = fixed_view(self.crops, self.seed, unit, row, view, size)
                    image[index] = crop_and_resize(data, box, self.side, flip=flip)
            except BrokenImage as error:
                broken.append((self.source.name(unit, row), str(error)))
                continue
            for name, value in {"photo": image_checksum(data), "size": size, "box": box, "flip": flip}.items():
                head[index][name] = value
            head[index]["valid"] = True
        keys = [self.source.key(unit, row) for unit, row, _ in places]
        return {"image": image, "head": head, "places": places, "keys": keys, "broken": broken}

    def counted_tokens(self, head: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """[B, N] bool: the tokens that show an image; not those of broken ones, and not the padding around whole ones.

        Args:
            head: of a batch.
            grid: tokens of an image.
        """
        counted = torch.zeros(len(head), *grid, dtype=torch.bool)
        for one, entry in zip(counted, head, strict=True):
            if entry["valid"]:
                frame = longest_side_frame(entry["size"].tolist(), self.side)
                height, width = frame.input_size if self.whole else (self.side, self.side)
                one[: -(-height * grid[0] // self.side), : -(-width * grid[1] // self.side)] = True
        return counted.flatten(1)


class ShardSampler(Sampler[list[Place]]):
    """The places of some shards, one shard after another, in batches that end with their shard.

    So the bytes of a shard do not depend on which others were written in the same run.
    """

    def __init__(self, parts: list[ShardPart], *, batch_size: int) -> None:
        self.parts, self.batch_size = parts, batch_size

    def __iter__(self) -> Iterator[list[Place]]:
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
