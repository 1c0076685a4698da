"""Benchmark of a cache: how fast it is written, and how fast a student learns from it.

B images
"""

from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from sami.benchmark.loading import CROPS, DrawnImages
from sami.benchmark.pretraining import Setting
from sami.cache.reader import CacheReader
from sami.cache.split import CacheOptions, CacheSplit, RunningTeacher
from sami.cache.teacher import CachedTeacher
from sami.cache.views import ViewsToCache
from sami.cache.write import Work, write_split
from sami.data.crops import normalize
from sami.data.datasets import TrainSet
from sami.data.loading import BatchLoader
from sami.data.pretraining import RandomCrop
from sami.data.sampling import PositionSampler, ShuffledOrder, Stream
from sami.models.teachers import Teacher


def write_drawn(folder: Path, images: DrawnImages, teacher: Teacher, setting: Setting, *, num_workers: int) -> Work:
    """Writes a cache of int8 views, twenty batches of them, and says how busy the teacher was."""
    options = CacheOptions(
        path=str(folder),
        kind="views",
        num_views=-(-20 * setting.batch_size // sum(images.counts)),
        storage="int8",
        channels=None,
        map_size=1024,
        precision="bf16-mixed" if setting.precision == "bf16" else "32",
        batch_size=setting.batch_size,
        shard_size=1000,
        num_workers=num_workers,
        max_broken_rate=0.0,
    )
    views = ViewsToCache(images, image_size=setting.image_size, crops=CROPS, seed=0)
    split = CacheSplit("train", options, views, teacher, {"_target_": type(teacher).__name__})
    running = RunningTeacher(teacher, precision=options.precision, device=torch.device(setting.device))
    next_batch = next(iter(split.sample(setting.batch_size)))
    running(next_batch, whole=False)  # warms up
    work = write_split(split, running, split.claim(running, None), (0, 1), Event())
    split.finish()
    return work


class CachedBatches:
    """Training batches and their targets from a cache, endlessly.

    Args:
        folder: what `write_drawn` wrote.
        images: for which.
    """

    def __init__(self, folder: Path, images: DrawnImages, setting: Setting, *, num_workers: int) -> None:
        order = ShuffledOrder(images.counts, seed=0, window=1, epoch_size=sum(images.counts))
        num_tokens = (setting.image_size // 16) ** 2
        reader = CacheReader(folder / "train", images)
        crop = RandomCrop(setting.image_size, num_tokens, CROPS, seed=0, num_views=reader.num_views, cache=reader)
        views = TrainSet(images, order, crop, seed=0, stream=Stream.PRETRAINING)
        endless = PositionSampler(batch_size=setting.batch_size, rank=0, world_size=1, num_batches=10**9, first_batch=0)
        self.stream = iter(BatchLoader(views, endless, num_workers=num_workers))
        self.device = setting.device
        self.teacher = CachedTeacher(str(folder)).to(setting.device)

    def __next__(self) -> tuple[Tensor, Tensor]:
        """image [B, 3, S, S], target [B, N, E]."""
        batch = {
            name: value.to(self.device, non_blocking=True)
            for name, value in next(self.stream).items()
            if name != "broken"
        }
        return normalize(batch["image"]), self.teacher(batch)
