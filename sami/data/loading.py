"""Loader and data module of every stage: training is one stream of positions, an evaluation shows each image once."""

import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sami.data.crops import normalize
from sami.data.datasets import Batch, EvalSet, TrainSet
from sami.data.sampling import EvalSampler, PositionSampler, ShuffledOrder
from sami.data.sources.base import AnySource


class BatchLoader(DataLoader):
    """torch's loader for data sets that give whole batches. `seconds_waited` grows by the time spent inside it."""

    def __init__(self, dataset: Dataset, sampler: Sampler[list] | list[list], *, num_workers: int) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=pass_through,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if num_workers else None,
        )
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
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


def pass_through(batch: Any) -> Any:
    """The collate function of a loader whose data set already gives batches."""
    return batch


def start_worker(worker: int) -> None:
    """Workers share the cores, and leave it to the training process when to stop.

    Schedulers send their signals to all processes of a job. A worker that died of one would take the run with it
    before the checkpoint is written; as it is, workers end when their process does.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class ImageData(pl.LightningDataModule):
    """Images in an order that depends on seed and position alone.

    Training is one long stream of positions, not a loop over epochs: workers live from the first step to the last,
    and a restart begins at the very next batch by asking for its positions.

    Args:
        train_source: of the images to train on.
        val_sources: validation sets by name, each with numbers of its own; the name of a single one may be empty.
        seed, shuffle_window: of the order, see `ShuffledOrder`.
        num_workers: loading processes per rank; 0 loads in the training process.
        val_batch_size: images per validation batch and rank.

    Raises:
        ValueError: see `check_positive`.
    """

    trainer: pl.Trainer  # set by Lightning

    def __init__(
        self,
        train_source: AnySource,
        val_sources: Mapping[str, AnySource],
        *,
        seed: int,
        shuffle_window: int,
        num_workers: int,
        val_batch_size: int,
    ) -> None:
        super().__init__()
        check_positive(shuffle_window=shuffle_window, val_batch_size=val_batch_size)
        self.train_source, self.val_sources = train_source, dict(val_sources)
        self.seed, self.shuffle_window = seed, shuffle_window
        self.num_workers, self.val_batch_size = num_workers, val_batch_size
        self.batch_size, self.epoch_size, self.num_batches = 0, 0, 0

    @property
    def num_images(self) -> int:
        """Images in the training set."""
        return sum(self.train_source.counts)

    @property
    def validates(self) -> bool:
        """Whether there are images to validate on."""
        return bool(self.val_sources)

    def setup_stream(self, *, batch_size: int, epoch_size: int, num_batches: int) -> None:
        """How training walks through the images: images per batch and rank, per epoch, and batches of the whole run."""
        self.batch_size, self.epoch_size, self.num_batches = batch_size, epoch_size, num_batches

    def train_order(self) -> ShuffledOrder:
        """Which image belongs to a position of the stream."""
        return ShuffledOrder(
            self.train_source.counts, seed=self.seed, window=self.shuffle_window, epoch_size=self.epoch_size
        )

    def train_set(self) -> TrainSet:
        """The training images by position."""
        raise NotImplementedError

    def val_set(self, name: str) -> EvalSet:
        """The images of one validation set by number."""
        raise NotImplementedError

    def train_dataloader(self) -> BatchLoader:
        """From the first batch after the steps already taken to the end of the run."""
        sampler = PositionSampler(
            batch_size=self.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            num_batches=self.num_batches,
            first_batch=self.trainer.global_step * self.trainer.accumulate_grad_batches,
        )
        return BatchLoader(self.train_set(), sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> list[BatchLoader]:
        """One loader for each set: every image once, dealt out to the ranks."""
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        loaders = []
        for name, source in self.val_sources.items():
            sampler = EvalSampler(sum(source.counts), batch_size=self.val_batch_size, **ranks)
            loaders.append(BatchLoader(self.val_set(name), sampler, num_workers=self.num_workers))
        return loaders

    def spread_val_batch(self, name: str, size: int) -> Batch:
        """A normalised batch of validation images at equal distances, to look at."""
        numbers = torch.linspace(0, sum(self.val_sources[name].counts) - 1, size).long().unique().tolist()
        return self.on_after_batch_transfer(self.val_set(name).__getitems__(numbers), 0)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pixels travel as bytes and are normalised where they are used."""
        return {**batch, "image": normalize(batch["image"])}  # [B, 3, S, S] float


def check_positive(**numbers: int | None) -> None:
    """Raises ValueError where a number that is given is below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name}={number}: give a whole number from 1")
