"""What the data modules share: training is one stream of positions, and each photo of an evaluation comes once."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sami.data.mask_sources import MaskSource
from sami.data.order import ShuffledOrder
from sami.data.sources import Source
from sami.data.views import EvalSampler, PositionSampler, pass_through


class ViewLoader(DataLoader):
    """torch's loader for data sets that give whole batches. `seconds_waited` grows by the time spent inside it."""

    def __init__(self, views: Dataset, sampler: PositionSampler | EvalSampler, *, num_workers: int) -> None:
        super().__init__(
            views,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=pass_through,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if num_workers else None,
        )
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: where to continue follows from the number of optimiser steps. Lightning asks, and warns without."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """See `state_dict`."""


def start_worker(worker: int) -> None:
    """Workers share the cores, and leave it to the training process when to stop.

    Schedulers send their signals to all processes of a job. A worker that died of one would take the run with it
    before the checkpoint is written; as it is, workers end when their process does.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class StreamData(pl.LightningDataModule):
    """Photos in an order that depends on seed and position alone.

    Training is one long stream of positions, not a loop over epochs: workers live from the first step to the last,
    and a restart begins at the very next batch by asking for its positions.

    Args:
        train_source: of the photos to train on.
        seed, shuffle_window: of their order, see `ShuffledOrder`.
        num_workers: loading processes per rank; 0 loads in the training process.
        val_batch_size: photos per validation batch and rank.
    """

    def __init__(
        self,
        train_source: Source | MaskSource,
        *,
        seed: int,
        shuffle_window: int,
        num_workers: int,
        val_batch_size: int,
    ) -> None:
        super().__init__()
        self.train_source, self.seed, self.shuffle_window = train_source, seed, shuffle_window
        self.num_workers, self.val_batch_size = num_workers, val_batch_size
        self.batch_size, self.epoch_size, self.num_batches = 0, 0, 0

    @property
    def validates(self) -> bool:
        """Whether there are images to validate on."""
        raise NotImplementedError

    @property
    def num_photos(self) -> int:
        """Photos in the training set."""
        return sum(self.train_source.counts)

    def set_stream(self, *, batch_size: int, epoch_size: int, num_batches: int) -> None:
        """How training walks through the photos: photos per batch and rank, per epoch, and batches of the whole run."""
        self.batch_size, self.epoch_size, self.num_batches = batch_size, epoch_size, num_batches

    def train_order(self) -> ShuffledOrder:
        """Which photo belongs to a position of the stream."""
        return ShuffledOrder(
            self.train_source.counts, seed=self.seed, window=self.shuffle_window, epoch_size=self.epoch_size
        )

    def train_views(self) -> Dataset:
        """The training views by position."""
        raise NotImplementedError

    def train_dataloader(self) -> ViewLoader:
        """From the first batch after the steps already taken to the end of the run."""
        sampler = PositionSampler(
            batch_size=self.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            num_batches=self.num_batches,
            first_batch=self.trainer.global_step * self.trainer.accumulate_grad_batches,
        )
        return ViewLoader(self.train_views(), sampler, num_workers=self.num_workers)

    def eval_loader(self, views: Dataset, num_photos: int) -> ViewLoader:
        """Every photo of an evaluation once, dealt out to the ranks."""
        sampler = EvalSampler(
            num_photos,
            batch_size=self.val_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return ViewLoader(views, sampler, num_workers=self.num_workers)
