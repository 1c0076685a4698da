"""What a cache will cost, before anything is written: bytes, hours of the teacher, minutes of the disk, and exactness.

E target width
"""

import os
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sami.data.cache_records import RecordFormat
from sami.data.whole_file import whole_file
from sami.methods.speed import measure_seconds
from sami.models.target_codec import STORAGES, TargetCodec
from sami.ops.pca import fit_pca
from sami.targets.task import CacheTask, RunningTeacher
from sami.targets.write import encode_and_measure

PROBE_BYTES = 1 << 28  # written to see how fast the disk is
RESERVE = 0.02  # of the disk stays free


class Format(NamedTuple):
    """A way to store the targets, and what it costs."""

    storage: str
    channels: int
    num_bytes: int
    cosine: float  # mean over images
    worst_cosine: float
    explained_variance: float


def cache_bytes(task: CacheTask, storage: str, channels: int) -> int:
    """Size of all shards of a split."""
    layout = RecordFormat(storage, task.grid[0] * task.grid[1], channels)
    return sum(layout.shard_bytes(part.num_photos) for part in task.layout.shards(task.num_views))


def compare_formats(task: CacheTask, targets: Tensor) -> list[Format]:
    """Every storage with all channels, and int8 with ever fewer principal components, measured on targets [n, N, E].

    The components are fitted on one half of the images and measured on the other, as all are.
    """
    fitted, measured = targets[::2], targets[1::2] if len(targets) > 1 else targets
    width = targets.shape[2]
    wanted = {(storage, width) for storage in STORAGES} | {("int8", c) for c in (256, 128, 64, 32) if c < width}
    wanted.add((task.options.storage, task.channels))
    formats = []
    for storage, channels in sorted(wanted, key=lambda pair: -STORAGES[pair[0]] * pair[1]):
        basis = fit_pca(fitted.flatten(0, 1), channels) if channels < width else None
        figures = encode_and_measure(TargetCodec(storage, width, basis), measured, torch.ones(len(measured)).bool())[1]
        num_tokens = figures["tokens"].sum()
        spread = figures["sum_of_squares"].sum(0) - figures["sum"].sum(0).square() / num_tokens  # [E]
        explained = 1 - figures["squared_error"].sum() / spread.sum()
        cosine = figures["cosine"]
        size = cache_bytes(task, storage, channels)
        formats.append(Format(storage, channels, size, float(cosine.mean()), float(cosine.min()), float(explained)))
    return formats


def measure_teacher(task: CacheTask, running: RunningTeacher, num_batches: int) -> tuple[float, Tensor]:
    """Images per second of the teacher on this machine, and the targets [n, N, E] it gave for a few photos."""
    targets, seconds = [], []
    batches = list(task.sample(num_batches * task.options.batch_size))
    running(batches[0], whole=task.whole)  # warms up
    for batch in batches:
        results: list[Tensor] = []
        ask = partial(lambda batch, results: results.append(running(batch, whole=task.whole)), batch, results)
        seconds.append(measure_seconds(ask, running.device.type) / len(batch["image"]))
        targets.append(results[0].cpu()[torch.from_numpy(batch["head"]["valid"])])
    if not sum(map(len, targets)):
        raise ValueError(f"none of the photos tried in {task.folder.name} can be used")
    return 1 / statistics.median(seconds), torch.cat(targets)


def measure_disk(folder: Path) -> float:
    """Bytes per second that reach the disk of this folder, which is made if need be."""
    block = os.urandom(1 << 24)
    path = folder / ".speed"
    begin = time.perf_counter()
    try:
        with whole_file(path) as file:
            for _ in range(PROBE_BYTES // len(block)):
                file.write(block)
    finally:
        path.unlink(missing_ok=True)
    return PROBE_BYTES / (time.perf_counter() - begin)


def check_space(tasks: list[CacheTask]) -> tuple[int, int]:
    """(bytes that are still to be written, bytes free).

    Raises:
        ValueError: they do not fit.
    """
    needed = 0
    for task in tasks:
        layout = RecordFormat(task.options.storage, task.grid[0] * task.grid[1], task.channels)
        needed += sum(layout.shard_bytes(part.num_photos) for part in task.remaining((0, 1)))
    disk = shutil.disk_usage(nearest_folder(tasks[0].folder))
    if needed > disk.free - RESERVE * disk.total:
        raise ValueError(
            f"{tasks[0].folder.parent} has {readable(disk.free)} free, and {readable(needed)} are still to be written "
            f"({RESERVE:.0%} of the disk stay free). Choose another cache.path, fewer cache.num_views, or a smaller "
            "cache.storage or cache.channels"
        )
    return needed, disk.free


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
