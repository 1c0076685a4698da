"""Data sets of every stage: images by position for training, by number for evaluation, in whole batches.

A stage says what it makes of one image. Reading, random numbers and the replacement of broken images stand here: what
is random about an image is a function of seed and position alone.

B images
"""

from collections.abc import Callable
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sami.data.decode import BrokenImage
from sami.data.sampling import NO_ROW, ShuffledOrder, Stream, generator, locate_in_file_order
from sami.data.sources.base import AnySource

Row = dict[str, Any]  # of a batch: tensors without B, or anything else
Batch = dict[str, Any]
Join = Callable[[list[Row]], Batch]


class Index(NamedTuple):
    """Where an image lies, and in which epoch it is shown."""

    unit: int
    row: int
    epoch: int


# What a stage makes of an image that was read, with random numbers of its own. It raises BrokenImage where it cannot.
Make = Callable[[Any, np.random.Generator, Index], Row]


def stack_rows(rows: list[Row]) -> Batch:
    """Rows of equal entries -> a batch: tensors stacked, everything else in lists."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    with torch.autocast("cpu", enabled=False):  # pictures are drawn inside it, and it refuses to stack fp16 targets
        return {name: torch.stack(one) if isinstance(one[0], Tensor) else one for name, one in columns.items()}


class TrainSet(Dataset):
    """Shuffled images by position.

    A batch holds what `join` makes of its rows, `position` int64 [B], and `broken`, a list of (where, why) of images
    that could not be used. Each of those is replaced by another that depends on the position alone, so no batch is ever
    short.

    Args:
        source: where images come from.
        order: which image belongs to a position.
        make: a row of a batch from an image.
        seed, stream: of the random numbers that `make` gets.
        join: a batch from its rows.
    """

    max_substitutes = 50

    def __init__(
        self, source: AnySource, order: ShuffledOrder, make: Make, *, seed: int, stream: Stream, join: Join = stack_rows
    ) -> None:
        self.source, self.order, self.make, self.join = source, order, make, join
        self.seed, self.stream = seed, stream

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch of these positions; torch's loader hands over whole batches."""
        broken: list[tuple[str, str]] = []
        rows = [self.row(position, broken) for position in positions]
        return {**self.join(rows), "position": torch.tensor(positions), "broken": broken}

    def row(self, position: int, broken: list[tuple[str, str]]) -> Row:
        """The row of one position; images that are broken are added to the list.

        Raises:
            ValueError: `max_substitutes` images in a row are broken.
        """
        unit, row = self.order.locate(position)
        for attempt in range(1 + self.max_substitutes):
            rng = generator(self.seed, self.stream, position, attempt)
            if attempt:
                unit, row = locate_in_file_order(self.order.counts, int(rng.integers(self.order.counts.sum())))
            try:
                return self.make(self.source.read(unit, row), rng, Index(unit, row, position // self.order.epoch_size))
            except BrokenImage as error:
                broken.append((self.source.name(unit, row), str(error)))
        raise ValueError(
            f"{1 + self.max_substitutes} images in a row cannot be used, the last is {broken[-1][0]} "
            f"({broken[-1][1]}): check that the training data is of the kind that this command learns from"
        )


class EvalSet(Dataset):
    """The images of a validation set by number, always the same.

    Batches as those of `TrainSet`, stacked, plus `image_valid` bool [B]: false for `NO_ROW` and broken images.

    Args:
        source, make, seed, stream: as of `TrainSet`.
        blank: a row without an image; also the entries that `make` may leave out.
    """

    def __init__(self, source: AnySource, make: Make, blank: Row, *, seed: int, stream: Stream) -> None:
        self.source, self.make, self.blank = source, make, blank
        self.seed, self.stream = seed, stream

    def __getitems__(self, numbers: list[int]) -> Batch:
        """The batch of these images."""
        broken: list[tuple[str, str]] = []
        rows = [self.row(number, broken) for number in numbers]
        return {**stack_rows(rows), "position": torch.tensor(numbers), "broken": broken}

    def row(self, number: int, broken: list[tuple[str, str]]) -> Row:
        """The row of one image; if it is broken, a blank one, and an entry of the list."""
        if number != NO_ROW:
            unit, row = locate_in_file_order(self.source.counts, number)
            rng = generator(self.seed, self.stream, number)
            try:
                made = self.make(self.source.read(unit, row), rng, Index(unit, row, 0))
                return {**self.blank, **made, "image_valid": torch.tensor(True)}
            except BrokenImage as error:
                broken.append((self.source.name(unit, row), str(error)))
        return {**self.blank, "image_valid": torch.tensor(False)}


def keep_valid(batch: Batch) -> Batch:
    """The rows of an evaluation batch that hold an image, without `broken`."""
    valid = batch["image_valid"]
    return {
        name: value[valid] if isinstance(value, Tensor) else list(compress(value, valid.tolist()))
        for name, value in batch.items()
        if name != "broken"
    }
