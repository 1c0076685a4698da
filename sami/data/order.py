"""Which photo comes when: a function of seed and position, computed without walking there.

A position counts the photos seen since the start of training, over all ranks and epochs.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


class ShuffledOrder:
    """A new shuffle of all photos in every epoch, in windows of whole units.

    Units (shards) are shuffled, taken `window` at a time, and the photos of such a window are shuffled among
    themselves. So an epoch reads a few shards at a time, which disks and page caches like, and finding a position
    costs one shuffle of one window. With no more than `window` units it is a plain shuffle of everything.

    Args:
        counts: photos of each unit.
        seed: another seed, another order.
        window: units per window.
        epoch_size: photos of an epoch, at most their number: whole global batches. The others wait for the next epoch.

    Raises:
        ValueError: fewer photos than one epoch needs.
    """

    max_windows = 2  # one that is being read, one that is being read ahead

    def __init__(self, counts: Sequence[int], *, seed: int, window: int, epoch_size: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        if not 0 < epoch_size <= self.counts.sum():
            raise ValueError(f"an epoch of {epoch_size} photos out of {self.counts.sum()}")
        self.seed, self.window, self.epoch_size = seed, window, epoch_size
        self._units: tuple[int, np.ndarray] | None = None
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def locate(self, position: int) -> tuple[int, int]:
        """(unit, row) of the photo at this position."""
        epoch, offset = divmod(position, self.epoch_size)
        units = self.units_of(epoch)
        ends = np.cumsum(self.counts[units])
        number = int(np.searchsorted(ends, offset, side="right")) // self.window
        first = number * self.window
        start = ends[first - 1] if first else 0
        members = units[first : first + self.window]
        photo = self.shuffled_window(epoch, number, int(self.counts[members].sum()))[offset - start]
        bounds = np.cumsum(self.counts[members])
        place = int(np.searchsorted(bounds, photo, side="right"))
        return int(members[place]), int(photo - (bounds[place - 1] if place else 0))

    def units_of(self, epoch: int) -> np.ndarray:
        """The order of units in an epoch."""
        if self._units is None or self._units[0] != epoch:
            rng = np.random.Generator(np.random.PCG64([self.seed, 1, epoch]))
            self._units = epoch, rng.permutation(len(self.counts))
        return self._units[1]

    def shuffled_window(self, epoch: int, number: int, size: int) -> np.ndarray:
        """A permutation of the photos of one window."""
        if (epoch, number) not in self._windows:
            rng = np.random.Generator(np.random.PCG64([self.seed, 2, epoch, number]))
            self._windows[epoch, number] = rng.permutation(size)
            if len(self._windows) > self.max_windows:
                self._windows.popitem(last=False)
        return self._windows[epoch, number]


def locate_in_file_order(counts: Sequence[int], row: int) -> tuple[int, int]:
    """(unit, row in it) of photo number `row`, units one after another."""
    ends = np.cumsum(counts)
    unit = int(np.searchsorted(ends, row, side="right"))
    return unit, int(row - (ends[unit - 1] if unit else 0))
