"""Which image comes when, and its random numbers: functions of seed and position, computed without walking there.

A position counts the images seen since the start of training, over all ranks and epochs.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from sami.data.crops import RandomCrops

NO_ROW = -1  # a row number that stands for no image: it fills up the last batch of an evaluation
NUM_NOISE = 32  # uniform numbers per object, from which prompts are drawn


@unique
class Stream(IntEnum):
    """Streams of random numbers of one seed. A number that changes changes every later run and cache."""

    UNITS = 1  # the order of units in an epoch
    WINDOW = 2  # the order of images in a window of units
    PRETRAINING = 3
    PRETRAINING_VAL = 4
    FIXED_VIEW = 5  # what caches hold
    FINETUNING_VAL = 6
    DISTILLATION = 7
    DISTILLATION_VAL = 8
    FINETUNING = 9


def generator(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """Random numbers of one thing in a stream: of a position, an epoch, ..."""
    return np.random.Generator(np.random.PCG64([seed, stream, *numbers]))


def draw_noise(rng: np.random.Generator, num_masks: int) -> Tensor:
    """[num_masks, NUM_NOISE] uniform in [0, 1)."""
    return torch.from_numpy(rng.random((num_masks, NUM_NOISE), dtype=np.float32))


def fixed_view(
    crops: RandomCrops, seed: int, unit: int, row: int, view: int, size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], bool]:
    """Crop box (top, left, height, width) and flip of one of the fixed views of an image of `size` (H, W)."""
    return crops.draw(size, generator(seed, Stream.FIXED_VIEW, unit, row, view))


class ShuffledOrder:
    """A new shuffle of all images in every epoch, in windows of whole units.

    Units (shards) are shuffled, taken `window` at a time, and the images of such a window are shuffled among
    themselves. So an epoch reads a few shards at a time, which disks and page caches like, and finding a position
    costs one shuffle of one window. With no more than `window` units it is a plain shuffle of everything.

    Args:
        counts: images of each unit.
        seed: another seed, another order.
        window: units per window.
        epoch_size: images of an epoch, at most their number: whole global batches. The others wait for the next epoch.

    Raises:
        ValueError: fewer images than one epoch needs.
    """

    max_windows = 2  # one that is being read, one that is being read ahead

    def __init__(self, counts: Sequence[int], *, seed: int, window: int, epoch_size: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        if not 0 < epoch_size <= self.counts.sum():
            raise ValueError(f"an epoch of {epoch_size} images out of {self.counts.sum()}")
        self.seed, self.window, self.epoch_size = seed, window, epoch_size
        self._units: tuple[int, np.ndarray] | None = None
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def locate(self, position: int) -> tuple[int, int]:
        """(unit, row) of the image at this position."""
        epoch, offset = divmod(position, self.epoch_size)
        units = self.units_of(epoch)
        ends = np.cumsum(self.counts[units])
        number = int(np.searchsorted(ends, offset, side="right")) // self.window
        first = number * self.window
        start = ends[first - 1] if first else 0
        members = units[first : first + self.window]
        image = self.shuffled_window(epoch, number, int(self.counts[members].sum()))[offset - start]
        member, row = locate_in_file_order(self.counts[members], image)
        return int(members[member]), row

    def units_of(self, epoch: int) -> np.ndarray:
        """The order of units in an epoch."""
        if self._units is None or self._units[0] != epoch:
            self._units = epoch, generator(self.seed, Stream.UNITS, epoch).permutation(len(self.counts))
        return self._units[1]

    def shuffled_window(self, epoch: int, number: int, size: int) -> np.ndarray:
        """A permutation of the images of one window."""
        if (epoch, number) not in self._windows:
            self._windows[epoch, number] = generator(self.seed, Stream.WINDOW, epoch, number).permutation(size)
            if len(self._windows) > self.max_windows:
                self._windows.popitem(last=False)
        return self._windows[epoch, number]


def locate_in_file_order(counts: Sequence[int] | np.ndarray, row: int) -> tuple[int, int]:
    """(unit, row in it) of image number `row`, units one after another."""
    ends = np.cumsum(counts)
    unit = int(np.searchsorted(ends, row, side="right"))
    return unit, int(row - (ends[unit - 1] if unit else 0))


class PositionSampler(Sampler[list[int]]):
    """The positions of each batch of one rank, from some batch of the run to its end.

    Optimiser step s uses positions s*G .. (s+1)*G - 1, G the global batch size, whatever the number of ranks: its
    images are dealt out as `accumulate` slices of `world_size` batches.

    Args:
        batch_size: images of one batch on one rank.
        rank, world_size: of this process and their number.
        num_batches: batches of the whole run on one rank.
        first_batch: where to begin.
    """

    def __init__(self, *, batch_size: int, rank: int, world_size: int, num_batches: int, first_batch: int) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_batches, self.first_batch = num_batches, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first_batch, self.num_batches):
            first = (number * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        """Batches of the whole run: Lightning counts those before `first_batch` as done."""
        return self.num_batches


class EvalSampler(Sampler[list[int]]):
    """Images dealt out to the ranks in turn, every rank as many batches as the others, the last filled with NO_ROW."""

    def __init__(self, num_images: int, *, batch_size: int, rank: int, world_size: int) -> None:
        share = -(-num_images // world_size)
        self.batches = []
        for start in range(0, share, batch_size):
            rows = [(start + i) * world_size + rank for i in range(min(batch_size, share - start))]
            self.batches.append([row if row < num_images else NO_ROW for row in rows])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
