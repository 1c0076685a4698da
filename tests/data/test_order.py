import time

import numpy as np
import pytest

from sami.data.order import ShuffledOrder, locate_in_file_order

COUNTS = [3, 5, 1, 7, 4, 2, 6]


def epoch_of(order: ShuffledOrder, epoch: int) -> list[tuple[int, int]]:
    return [order.locate(epoch * order.epoch_size + offset) for offset in range(order.epoch_size)]


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_every_photo_once_in_an_epoch(window: int) -> None:
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
    assert all(len(photos) == 20 for photos in seen) and len(set.union(*seen)) == 28


def test_windows_hold_whole_units() -> None:
    order = ShuffledOrder([10] * 8, seed=0, window=2, epoch_size=80)
    places = epoch_of(order, 0)
    for start in range(0, 80, 20):
        assert len({unit for unit, _ in places[start : start + 20]}) == 2


def test_positions_are_uniform() -> None:
    """Over many epochs each photo comes as often in the first half as in the second."""
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
    with pytest.raises(ValueError, match="29 photos out of 28"):
        ShuffledOrder(COUNTS, seed=0, window=1, epoch_size=29)


def test_file_order() -> None:
    places = [locate_in_file_order(COUNTS, row) for row in range(28)]
    assert places == [(unit, row) for unit, count in enumerate(COUNTS) for row in range(count)]
