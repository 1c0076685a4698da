"""Images on disk, each readable by number: tar shards and image folders."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm
from webdataset.shardlists import expand_urls

from sami.data.decode import BrokenImage
from sami.data.sources.base import NO_LABEL, EncodedImage, ImageFiles, Source, find_files
from sami.data.sources.tar_index import TarIndex, load_index


def open_source(where: str | list[str]) -> Source:
    """A folder of images, or shards. Raises ValueError: see `ShardSource` and `FolderSource`."""
    if isinstance(where, str) and Path(where).is_dir():
        return FolderSource(where)
    return ShardSource(where)


class ShardSource:
    """Tar shards in webdataset's layout: `{key}.jpg` (or png, webp, ...) and, for k-NN, `{key}.cls`.

    Memory holds the number of samples of each shard, and the byte ranges of the last few shards that were read.

    Args:
        shards: brace pattern such as "/data/train-{0000..1023}.tar", or a list of such.

    Raises:
        ValueError: a remote address, no such shard, or one that cannot be read (see `load_index`).
    """

    max_open = 96  # several shuffle windows: each open shard costs a file handle and about 100 kB of byte ranges

    def __init__(self, shards: str | Sequence[str]) -> None:
        patterns = [shards] if isinstance(shards, str) else list(shards)
        names = [name for pattern in patterns for name in expand_urls(str(pattern))]
        remote = [name for name in names if "://" in name or name.startswith("pipe:")]
        if remote:
            raise ValueError(
                f"{remote[0]}: shards are read at random positions, which a stream cannot do. "
                "Copy them to a disk, or mount the store as a folder."
            )
        self.paths = [Path(name) for name in names]
        missing = [path for path in self.paths if not path.is_file()]
        if missing or not self.paths:
            example = f", the first is {missing[0]}" if missing else ""
            given = ", ".join(map(repr, patterns))
            raise ValueError(
                f"{len(missing)} of the {len(self.paths)} shards of {given} do not exist{example}. "
                "Check the pattern, or write shards with: python -m sami.pack source=FOLDER target=FOLDER"
            )
        self.counts = count_samples(self.paths)
        listing = [f"{path.name}:{count}" for path, count in zip(self.paths, self.counts, strict=True)]
        self.fingerprint = hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]
        self._opened: OrderedDict[int, tuple[TarIndex, int]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Open files do not travel to worker processes that are not forked."""
        return {**self.__dict__, "_opened": OrderedDict()}

    def load(self, path: Path) -> TarIndex:
        """The byte ranges of a shard."""
        return load_index(path)

    def open_unit(self, unit: int) -> tuple[TarIndex, int]:
        """(byte ranges, file descriptor) of a shard."""
        if unit not in self._opened:
            self._opened[unit] = self.load(self.paths[unit]), os.open(self.paths[unit], os.O_RDONLY)
            if len(self._opened) > self.max_open:
                os.close(self._opened.popitem(last=False)[1][1])
        self._opened.move_to_end(unit)
        return self._opened[unit]

    def name(self, unit: int, row: int) -> str:
        """`shard: key`."""
        return f"{self.paths[unit]}: {self.open_unit(unit)[0].keys[row]}"

    def key(self, unit: int, row: int) -> str:
        """The sample's key."""
        return str(self.open_unit(unit)[0].keys[row])

    def read(self, unit: int, row: int) -> EncodedImage:
        """The bytes of one member. Raises BrokenImage: the sample has no image, or a label that is not a number."""
        index, descriptor = self.open_unit(unit)
        image = index.image_span(row)
        if image is None:
            present = [str(ext) for ext in index.extensions if index.span(row, ext)]
            raise BrokenImage(f"no image in this sample, only {', '.join(present)}")
        label = index.span(row, "cls")
        try:
            number = int(os.pread(descriptor, label[1], label[0])) if label else NO_LABEL
        except ValueError as error:
            raise BrokenImage(f"its .cls is not a class index: {error}") from error
        return EncodedImage(os.pread(descriptor, image[1], image[0]), number)


def count_samples(paths: Sequence[Path]) -> list[int]:
    """Samples of each shard. The first time this walks all their headers, about 8,000 samples/s on each core."""
    bar = {"desc": "reading shard headers", "unit": "shard", "leave": False, "delay": 2}
    if len(paths) < 8:
        return [count_one(path) for path in tqdm(paths, **bar)]
    # forked, since a worker needs nothing but tarfile and numpy, and is there at once
    with ProcessPoolExecutor(max_workers=min(8, os.cpu_count() or 1), mp_context=get_context("fork")) as pool:
        return list(tqdm(pool.map(count_one, paths, chunksize=4), total=len(paths), **bar))


def count_one(path: Path) -> int:
    """Samples of one shard."""
    return len(load_index(path).keys)


class FolderSource(ImageFiles):
    """A folder of images, at any depth. The sorted folders on its first level are the classes.

    Raises:
        ValueError: no such folder, or no image in it.
    """

    def __init__(self, root: str) -> None:
        files = find_files(root)
        super().__init__(Path(root), files)
        self.classes = sorted({file.split(os.sep)[0] for file in files if os.sep in file})
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([number[file.split(os.sep)[0]] if os.sep in file else NO_LABEL for file in files])

    def read(self, unit: int, row: int) -> EncodedImage:
        """The bytes of one file. Raises BrokenImage where it cannot be opened."""
        return EncodedImage(self.read_bytes(row), int(self.labels[row]))
