"""Reads cached targets, any record by its image and view; at random positions of a shard.

B images   N tokens   C stored channels
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sami.cache.layout import CacheLayout
from sami.cache.manifest import open_manifest, record_format
from sami.cache.recipe import compare
from sami.data.crops import TRANSFORM_VERSION
from sami.data.decode import BrokenImage
from sami.data.sources.base import Images
from sami.ops.frames import longest_side_frame

TARGET = "target_"  # begins the names of a batch's entries that come from a cache


class CacheReader:
    """One split of a cache, for the images it was made from. Memory holds the manifest and some open files.

    Args:
        folder: of the split.
        source: the images.

    Raises:
        ValueError: see `open_manifest`; or the images are others, or sami made other pixels of them then.
    """

    max_open = 96  # several shuffle windows of shards

    def __init__(self, folder: Path, source: Images) -> None:
        self.folder = folder
        self.manifest = open_manifest(folder)
        transform = {**self.manifest["transform"], "version": TRANSFORM_VERSION}
        self.check({"photos": describe_images(source), "transform": transform})
        self.format = record_format(self.manifest)
        self.layout = CacheLayout(source.counts, self.manifest["shard_size"])
        self._opened: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Open files do not travel to worker processes that are not forked."""
        return {**self.__dict__, "_opened": OrderedDict()}

    @property
    def holds_maps(self) -> bool:
        """Whether records are maps of whole images, else targets of views."""
        return self.manifest["kind"] == "maps"

    @property
    def num_views(self) -> int:
        """Records of each image."""
        return self.manifest["num_views"]

    def check(self, expected: dict[str, Any]) -> None:
        """Compares entries of the manifest with what this run needs.

        Raises:
            ValueError: they differ; the message lists all differences.
        """
        found = {name: self.manifest[name] for name in expected}
        if differences := compare(found, expected):
            raise ValueError(
                f"the cache {self.folder} does not fit this run:\n  " + "\n  ".join(differences) + "\n"
                "Write another cache for this run, or give the run the settings of this one."
            )

    def open_shard(self, name: str) -> int:
        """The file descriptor of a shard."""
        if name not in self._opened:
            self._opened[name] = os.open(self.folder / name, os.O_RDONLY)
            if len(self._opened) > self.max_open:
                os.close(self._opened.popitem(last=False)[1])
        self._opened.move_to_end(name)
        return self._opened[name]

    def read(self, unit: int, row: int, view: int) -> np.void:
        """The record of a view of an image.

        Raises:
            BrokenImage: this record cannot be used; the message names its shard and says why.
        """
        shard, number = self.layout.locate(unit, row, view)
        try:
            data = os.pread(self.open_shard(shard), self.format.dtype.itemsize, self.format.offset(number))
            record = self.format.unpack(data)
        except (OSError, ValueError) as error:
            raise BrokenImage(f"cache {self.folder / shard}, record {number}: {error}") from error
        if (record["row"], record["view"]) != (row, view):
            raise BrokenImage(
                f"cache {self.folder / shard}, record {number}: it belongs to image {record['row']}, view "
                f"{record['view']}, not to image {row}, view {view}"
            )
        if not record["valid"]:
            raise BrokenImage("it was broken when the cache was written")
        return record

    def read_for(self, image: bytes, unit: int, row: int, view: int) -> np.void:
        """`read`, for the very bytes of this image file.

        Raises:
            BrokenImage: see `read`; or the image has changed since.
        """
        record = self.read(unit, row, view)
        if record["photo"] != zlib.crc32(image):
            raise BrokenImage("the image has changed since the cache was written: its targets are another picture's")
        return record

    def entries(self, record: np.void, box: Sequence[int], *, flip: bool) -> dict[str, Tensor]:
        """A record as entries of a batch's row.

        Args:
            box, flip: of the view that the student sees; only maps are cut to it.
        """
        entries = {name: torch.from_numpy(record[name].copy()) for name in self.format.stored}
        if self.holds_maps:
            region = map_region(record["size"], box, image_size=self.manifest["image_size"], grid=self.manifest["grid"])
            entries |= {"region": torch.from_numpy(region), "flip": torch.tensor(bool(flip))}
        return {TARGET + name: entry for name, entry in entries.items()}

    def whole_entries(self, record: np.void) -> dict[str, Tensor]:
        """`entries` of a map as it is, padding and all."""
        region = torch.tensor([0.0, 0.0, *self.manifest["grid"]])
        return {**self.entries(record, record["box"], flip=False), f"{TARGET}region": region}

    def blank(self) -> dict[str, Tensor]:
        """`entries` of an image that is not there."""
        record = np.zeros(1, dtype=self.format.dtype)
        record["size"] = 1  # a map's frame divides by it
        return self.entries(record[0], (0, 0, 0, 0), flip=False)


def describe_images(source: Images) -> dict[str, Any]:
    """What a recipe says about its images."""
    return {"fingerprint": source.fingerprint, "count": int(sum(source.counts))}


def map_region(size: Sequence[int], box: Sequence[int], *, image_size: int, grid: Sequence[int]) -> np.ndarray:
    """[4] float32 (top, left, bottom, right) in cells of a map: where a box of the image lies in it.

    Args:
        size: (H, W) of the image, which lies in the map's upper left corner, its longest side as long as the map's.
        box: (top, left, height, width) in pixels of the image.
        image_size: pixels per side of the square that the teacher saw.
        grid: (h, w) of the map.
    """
    top, left, height, width = box
    corners = np.array([[top, left], [top + height, left + width]], dtype=np.float64)
    resized = np.array(longest_side_frame((int(size[0]), int(size[1])), image_size).input_size)
    cells = corners * (resized / np.asarray(size)) * (np.asarray(grid) / image_size)
    return cells.astype(np.float32).reshape(4)
