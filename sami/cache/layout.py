"""Shard layout of a cache: which records lie in which shard, and which rank or array task writes it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class ShardPart(NamedTuple):
    """One shard of a cache: a view of consecutive images of a unit (an image shard, or a whole folder)."""

    name: str
    view: int
    unit: int
    first_row: int
    num_images: int


class CacheLayout:
    """Units are cut into equal parts, and a shard holds one view of one part.

    So a pass over the images reads whole shards, whatever the number of views, and views can be added later.

    Args:
        counts: images of each unit.
        shard_size: images of a shard, at most.
    """

    def __init__(self, counts: Sequence[int], shard_size: int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        num_parts = -(-self.counts // shard_size)  # [units]
        self.part_sizes = np.maximum(-(-self.counts // np.maximum(num_parts, 1)), 1)  # an empty unit has no part
        self.first_part = np.concatenate([[0], np.cumsum(num_parts)])  # [units + 1]

    def locate(self, unit: int, row: int, view: int) -> tuple[str, int]:
        """(shard, number of the record in it) of a view of an image."""
        part, number = divmod(row, int(self.part_sizes[unit]))
        return shard_file(view, int(self.first_part[unit]) + part), number

    def shards(self, num_views: int) -> Iterator[ShardPart]:
        """All shards: those of the first view, then those of the second, ..."""
        for view in range(num_views):
            for unit, count in enumerate(self.counts.tolist()):
                size = int(self.part_sizes[unit])
                for part, first in enumerate(range(0, count, size)):
                    name = shard_file(view, int(self.first_part[unit]) + part)
                    yield ShardPart(name, view, unit, first, min(size, count - first))


def shard_file(view: int, part: int) -> str:
    """`view00-000042.tar`."""
    return f"view{view:02d}-{part:06d}.tar"


def own_share(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(number, count) of this process among those that write one cache: torchrun's or srun's ranks, times the tasks
    of a SLURM array.

    Raises:
        ValueError: the array's task numbers have gaps, so that some shares would have nobody.
    """
    rank, world_size = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"
    if "RANK" in environment and "WORLD_SIZE" in environment:  # sbatch scripts often export the second alone
        rank, world_size = "RANK", "WORLD_SIZE"
    number, count = int(environment.get(rank, 0)), int(environment.get(world_size, 1))
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, first, last, step = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "STEP")
        )
        num_tasks = int(environment["SLURM_ARRAY_TASK_COUNT"])
        if (last - first) // step + 1 != num_tasks:
            raise ValueError(
                f"the SLURM array has {num_tasks} tasks between {first} and {last}: give numbers without gaps, as "
                "--array=0-7. To continue an array of which some tasks failed, submit all of it again: finished "
                "shards are passed over"
            )
        number, count = (task - first) // step * count + number, num_tasks * count
    return number, count
