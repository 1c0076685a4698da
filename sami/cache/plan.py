"""Cost estimate of a cache, before anything is written: bytes, hours of the teacher, minutes of the disk, exactness.

E target width
"""

import statistics
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sami.cache.codec import FAITHFUL, STORAGES, TargetCodec, encode_and_measure
from sami.cache.disk import cache_bytes, disk_space, measure_disk, nearest_folder, readable
from sami.cache.split import CacheSplit, RunningTeacher
from sami.clock import measure_seconds
from sami.ops.pca import fit_pca


class Format(NamedTuple):
    """A way to store the targets, and what it costs."""

    storage: str
    channels: int
    num_bytes: int
    cosine: float  # mean over images
    worst_cosine: float
    explained_variance: float


def print_estimate(splits: list[CacheSplit], running: RunningTeacher, *, num_batches: int, epochs: int) -> None:
    """Measures and prints.

    Args:
        splits: training first.
        num_batches: that measure the teacher and the storage formats.
        epochs: of the training that this is for.
    """
    split, *others = splits
    rate, targets, token_valid = measure_teacher(split, running, num_batches)
    disk = measure_disk(nearest_folder(split.folder))
    on_gpu = running.device.type == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"CPU with {torch.get_num_threads()} threads"
    num_records, num_images = sum(each.num_records for each in splits), sum(split.source.counts)
    what = "a map" if split.views.whole else f"{split.num_views} views"
    print(f"{num_records:,} targets of {split.grid[0]}x{split.grid[1]}x{split.teacher.width}: {what} of each image")
    print(f"teacher: {rate:,.1f} images/s on this {machine}, {split.options.precision}")
    print(f"         {num_records / rate / 3600:,.2f} hours to write the cache")
    print(f"         {epochs * num_images / rate / 3600:,.2f} hours in {epochs} epochs of training without it")
    print(f"disk: {disk / 1e6:,.0f} MB/s\n")
    names = ("storage", "channels", "size", "minutes of disk", "mean cosine", "worst", "explained variance")
    print("{:>8}{:>10}{:>10}{:>17}{:>13}{:>10}{:>20}".format(*names))
    for row in compare_formats(split, targets, token_valid):
        size = row.num_bytes + sum(cache_bytes(each, row.storage, row.channels) for each in others)
        numbers = (
            f"{size / disk / 60:>17,.1f}{row.cosine:>13.6f}{row.worst_cosine:>10.6f}{row.explained_variance:>20.6f}"
        )
        chosen = "  <- chosen" if (row.storage, row.channels) == (split.options.storage, split.channels) else ""
        print(f"{row.storage:>8}{row.channels:>10}{readable(size):>10}{numbers}{chosen}")
        if chosen and row.channels == split.teacher.width and row.worst_cosine < FAITHFUL:
            print(f"         cosines below {FAITHFUL}: single tokens or channels dwarf the rest; fp16 keeps them apart")
    needed, free = disk_space(splits)
    print(f"\nThe last three columns compare with the exact targets of {max(1, len(targets) // 2)} images.")
    print(f"{readable(needed)} are still to be written, {readable(free)} are free.")


def compare_formats(split: CacheSplit, targets: Tensor, token_valid: Tensor) -> list[Format]:
    """Every storage with all channels, and int8 with ever fewer principal components, on targets [n, N, E].

    The components are fitted on one half of the images and measured on the other, as all are; only the `token_valid`
    tokens [n, N] take part.
    """
    fitted = targets[::2][token_valid[::2]]  # [T, E]
    if len(targets) > 1:
        targets, token_valid = targets[1::2], token_valid[1::2]
    width = targets.shape[2]
    wanted = {(storage, width) for storage in STORAGES} | {("int8", c) for c in (256, 128, 64, 32) if c < width}
    wanted.add((split.options.storage, split.channels))
    formats = []
    for storage, channels in sorted(wanted, key=lambda pair: (-STORAGES[pair[0]] * pair[1], pair)):
        basis = fit_pca(fitted, channels) if channels < width else None
        figures = encode_and_measure(TargetCodec(storage, width, basis), targets, token_valid)[1]
        num_tokens = figures["tokens"].sum()
        spread = figures["sum_of_squares"].sum(0) - figures["sum"].sum(0).square() / num_tokens  # [E]
        explained = 1 - figures["squared_error"].sum() / spread.sum()
        cosine = figures["cosine"]
        size = cache_bytes(split, storage, channels)
        formats.append(Format(storage, channels, size, float(cosine.mean()), float(cosine.min()), float(explained)))
    return formats


def measure_teacher(split: CacheSplit, running: RunningTeacher, num_batches: int) -> tuple[float, Tensor, Tensor]:
    """Images per second of the teacher on this machine; the targets [n, N, E] it gave, and which tokens count [n, N].

    Raises:
        ValueError: no image can be used, or no batch is asked for.
    """
    if num_batches < 1:
        raise ValueError(f"plan_batches={num_batches}: give a number from 1")
    targets, token_valid, seconds = [], [], []
    batches = list(split.sample(num_batches * split.options.batch_size))
    running(batches[0], whole=split.views.whole)  # warms up
    for batch in batches:
        results: list[Tensor] = []
        ask = partial(lambda batch, results: results.append(running(batch, whole=split.views.whole)), batch, results)
        seconds.append(measure_seconds(ask, running.device.type) / len(batch["image"]))
        valid = batch["head"]["valid"]
        targets.append(results[0].cpu()[torch.from_numpy(valid)])
        token_valid.append(split.views.valid_tokens(batch["head"][valid], split.grid))
    if not sum(map(len, targets)):
        raise ValueError(f"none of the images that were tried of {split.name} can be used")
    return 1 / statistics.median(seconds), torch.cat(targets), torch.cat(token_valid)
