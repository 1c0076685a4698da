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


def print_plan(tasks: list[CacheTask], running: RunningTeacher, *, num_batches: int, epochs: int) -> None:
    """Measures and prints.

    Args:
        tasks: training first.
        num_batches: that measure the teacher and the storage formats.
        epochs: of the training that this is for.
    """
    task, *others = tasks
    rate, targets = measure_teacher(task, running, num_batches)
    disk = measure_disk(nearest_folder(task.folder))
    on_gpu = running.device.type == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"CPU with {torch.get_num_threads()} threads"
    num_records, num_photos = sum(each.num_records for each in tasks), sum(task.source.counts)
    what = "a map" if task.views.whole else f"{task.num_views} views"
    print(f"{num_records:,} targets of {task.grid[0]}x{task.grid[1]}x{task.teacher.width}: {what} of each photo")
    print(f"teacher: {rate:,.1f} images/s on this {machine}, {task.options.precision}")
    print(f"         {num_records / rate / 3600:,.2f} hours to write the cache")
    print(f"         {epochs * num_photos / rate / 3600:,.2f} hours in {epochs} epochs of training without it")
    print(f"disk: {disk / 1e6:,.0f} MB/s\n")
    names = ("storage", "channels", "size", "minutes of disk", "mean cosine", "worst", "explained variance")
    print("{:>8}{:>10}{:>10}{:>17}{:>13}{:>10}{:>20}".format(*names))
    for row in compare_formats(task, targets):
        size = row.num_bytes + sum(cache_bytes(each, row.storage, row.channels) for each in others)
        numbers = (
            f"{size / disk / 60:>17,.1f}{row.cosine:>13.6f}{row.worst_cosine:>10.6f}{row.explained_variance:>20.6f}"
        )
        chosen = "  <- chosen" if (row.storage, row.channels) == (task.options.storage, task.channels) else ""
        print(f"{row.storage:>8}{row.channels:>10}{readable(size):>10}{numbers}{chosen}")
    needed, free = space(tasks)
    print(f"\nThe last three columns compare with the exact targets of {len(targets) - len(targets) // 2} images.")
    print(f"{readable(needed)} are still to be written, {readable(free)} are free.")


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
    running(batches[0], whole=task.views.whole)  # warms up
    for batch in batches:
        results: list[Tensor] = []
        ask = partial(lambda batch, results: results.append(running(batch, whole=task.views.whole)), batch, results)
        seconds.append(measure_seconds(ask, running.device.type) / len(batch["image"]))
        targets.append(results[0].cpu()[torch.from_numpy(batch["head"]["valid"])])
    if not sum(map(len, targets)):
        raise ValueError(f"none of the photos tried in {task.folder.name} can be used")
    return 1 / statistics.median(seconds), torch.cat(targets)


def measure_disk(folder: Path) -> float:
    """Bytes per second that reach the disk of this folder."""
    num_bytes = min(PROBE_BYTES, shutil.disk_usage(folder).free // 2)
    block = os.urandom(min(num_bytes, 1 << 24))
    path = folder / f".speed.{os.getpid()}"
    begin = time.perf_counter()
    try:
        with whole_file(path) as file:
            for _ in range(num_bytes // len(block)):
                file.write(block)
    finally:
        path.unlink(missing_ok=True)
    return num_bytes / (time.perf_counter() - begin)


def space(tasks: list[CacheTask]) -> tuple[int, int]:
    """(bytes that are still to be written, bytes free for them)."""
    needed = 0
    for task in tasks:
        layout = RecordFormat(task.options.storage, task.grid[0] * task.grid[1], task.channels)
        needed += sum(layout.shard_bytes(part.num_photos) for part in task.remaining((0, 1)))
    disk = shutil.disk_usage(nearest_folder(tasks[0].folder))
    return needed, max(0, disk.free - int(RESERVE * disk.total))


def check_space(tasks: list[CacheTask]) -> None:
    """Refuses what will not fit.

    Raises:
        ValueError: the disk is too small for what is still to be written.
    """
    needed, free = space(tasks)
    if needed > free:
        raise ValueError(
            f"{tasks[0].folder.parent} has room for {readable(free)} ({RESERVE:.0%} of the disk stay free), and "
            f"{readable(needed)} are still to be written. Choose another cache.path, fewer cache.num_views, or a "
            "smaller cache.storage or cache.channels"
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
