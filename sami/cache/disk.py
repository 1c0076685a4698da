"""Disk space and disk speed: the bytes of a cache, and whether there is room for them."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from sami.cache.layout import ShardPart
from sami.cache.records import RecordFormat
from sami.cache.split import CacheSplit

PROBE_BYTES = 1 << 28  # written to see how fast the disk is
LEAST_BYTES = 1 << 16
RESERVE = 0.02  # of the disk stays free


def cache_bytes(split: CacheSplit, storage: str, channels: int, parts: Iterable[ShardPart] | None = None) -> int:
    """Size of shards of a split, by default of all."""
    layout = RecordFormat(storage, split.grid[0] * split.grid[1], channels)
    parts = split.layout.shards(split.num_views) if parts is None else parts
    return sum(layout.shard_bytes(part.num_images) for part in parts)


def measure_disk(folder: Path) -> float:
    """Bytes per second that reach the disk of this folder; nan where there is hardly room for anything."""
    num_bytes = min(PROBE_BYTES, shutil.disk_usage(folder).free // 2)
    if num_bytes < LEAST_BYTES:
        return float("nan")
    block = os.urandom(min(num_bytes, 1 << 24))
    begin = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name, so that nothing can be left behind
        for _ in range(num_bytes // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return num_bytes / (time.perf_counter() - begin)


def disk_space(splits: list[CacheSplit]) -> tuple[int, int]:
    """(bytes that are still to be written, bytes free for them)."""
    needed = sum(cache_bytes(each, each.options.storage, each.channels, each.remaining((0, 1))) for each in splits)
    disk = shutil.disk_usage(nearest_folder(splits[0].folder))
    return needed, max(0, disk.free - int(RESERVE * disk.total))


def check_space(splits: list[CacheSplit]) -> None:
    """Refuses what will not fit. Raises ValueError: the disk is too small for what is still to be written."""
    needed, free = disk_space(splits)
    if needed > free:
        raise ValueError(
            f"{splits[0].folder.parent} has room for {readable(free)} ({RESERVE:.0%} of the disk stay free), and "
            f"{readable(needed)} are still to be written. Choose another path, fewer views (num_views), or a "
            "smaller storage or fewer channels"
        )


def nearest_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() or path == path.parent else nearest_folder(path.parent)


def readable(num_bytes: float) -> str:
    """1.5 GB: decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
