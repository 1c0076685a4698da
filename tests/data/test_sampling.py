import time

import numpy as np
import pytest

from sami.data.sampling import (
    NO_ROW,
    EvalSampler,
    PositionSampler,
    ShuffledOrder,
    Stream,
    generator,
    locate_in_file_order,
)

COUNTS = [3, 5, 1, 7, 4, 2, 6]


def epoch_of(order: ShuffledOrder, epoch: int) -> list[tuple[int, int]]:
    return [order.locate(epoch * order.epoch_size + offset) for offset in range(order.epoch_size)]


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_every_image_once_in_an_epoch(window: int) -> None:
    order = ShuffledOrder(COUNTS, seed=1, window=window, epoch_size=sum(COUNTS))
    everything = [(unit, row) for unit, count in enumerate(COUNTS) for row in range(count)]
    for epoch in (0, 1, 5):
        assert sorted(epoch_of(order, epoch)) == everything
    assert epoch_of(order, 0) != epoch_of(order, 1)


def test_a_position_needs_no_history() -> None:
    walked = ShuffledOrder(COUNTS, seed=1, window=2, epoch_size=28)
    walk = [walked.locate(position) for position in range(200)]
    for position in (199, 3, 121, 64, 120):
        assert ShuffledOrder(COUNTS, seed=1, window=2, epoch_size=28).locate(position) == walk[position]


def test_seed_changes_the_order() -> None:
    first, second = (ShuffledOrder(COUNTS, seed=seed, window=9, epoch_size=28) for seed in (1, 2))
    assert epoch_of(first, 0) != epoch_of(second, 0)


def test_a_short_epoch_leaves_out_others_each_time() -> None:
    order = ShuffledOrder(COUNTS, seed=0, window=9, epoch_size=20)
    seen = [set(epoch_of(order, epoch)) for epoch in range(6)]
    assert all(len(images) == 20 for images in seen) and len(set.union(*seen)) == 28


def test_windows_hold_whole_units() -> None:
    order = ShuffledOrder([10] * 8, seed=0, window=2, epoch_size=80)
    places = epoch_of(order, 0)
    for start in range(0, 80, 20):
        assert len({unit for unit, _ in places[start : start + 20]}) == 2


def test_positions_are_uniform() -> None:
    """Over many epochs each image comes as often in the first half as in the second."""
    order = ShuffledOrder([4, 4, 4, 4], seed=0, window=2, epoch_size=16)
    first_half = np.zeros((4, 4))
    for epoch in range(400):
        for place in epoch_of(order, epoch)[:8]:
            first_half[place] += 1
    assert np.abs(first_half / 400 - 0.5).max() < 0.1


def test_any_position_of_imagenet_is_near() -> None:
    order = ShuffledOrder([1252] * 1024, seed=0, window=32, epoch_size=1252 * 1024)
    start = time.process_time()
    order.locate(399 * 1252 * 1024 + 1_000_000)
    assert time.process_time() - start < 1  # replaying a million samples takes minutes; this takes milliseconds


def test_epoch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match="29 images out of 28"):
        ShuffledOrder(COUNTS, seed=0, window=1, epoch_size=29)


def test_file_order() -> None:
    places = [locate_in_file_order(COUNTS, row) for row in range(28)]
    assert places == [(unit, row) for unit, count in enumerate(COUNTS) for row in range(count)]


@pytest.mark.parametrize(
    ("world_size", "batch_size", "accumulate"), [(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 2, 3), (4, 1, 3)]
)
def test_global_batches_do_not_depend_on_the_machines(world_size: int, batch_size: int, accumulate: int) -> None:
    """Optimiser step s sees positions 12 s .. 12 s + 11, however they are dealt out; each rank gets equally many."""
    ranks = [
        list(
            PositionSampler(
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                num_batches=5 * accumulate,
                first_batch=2 * accumulate,
            )
        )
        for rank in range(world_size)
    ]
    for step in range(3):
        seen = [p for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate] for p in batch]
        assert sorted(seen) == list(range(12 * (step + 2), 12 * (step + 3)))


@pytest.mark.parametrize("num_images", [1, 7, 8, 23])
def test_eval_sampler_deals_every_image_once(num_images: int) -> None:
    ranks = [list(EvalSampler(num_images, batch_size=3, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(rank) for rank in ranks}) == 1
    rows = [row for rank in ranks for batch in rank for row in batch if row != NO_ROW]
    assert sorted(rows) == list(range(num_images))
    assert np.ptp([sum(map(len, rank)) for rank in ranks]) == 0


def test_streams_keep_their_numbers() -> None:
    """A run that is continued and a cache that was written draw what they drew before."""
    numbers = {"UNITS": 1, "WINDOW": 2, "PRETRAINING": 3, "PRETRAINING_VAL": 4, "FIXED_VIEW": 5, "FINETUNING_VAL": 6}
    numbers |= {"DISTILLATION": 7, "DISTILLATION_VAL": 8, "FINETUNING": 9}
    assert {stream.name: stream.value for stream in Stream} == numbers
    assert generator(3, Stream.FIXED_VIEW, 1, 2).random() == np.random.Generator(np.random.PCG64([3, 5, 1, 2])).random()
