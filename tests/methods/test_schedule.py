from itertools import pairwise
from types import SimpleNamespace

import pytest

from sami.methods.schedule import Schedule, lr_factor

PAPER = {"epochs": 400, "warmup_epochs": 40, "base_lr": 1.5e-4, "global_batch_size": 4096}


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate"), [(256, 1, 16), (300, 1, 16), (256, 8, 2), (256, 64, 1), (64, 64, 1)]
)
def test_one_gpu_follows_the_recipe_of_64(batch_size: int, world_size: int, accumulate: int) -> None:
    length = Schedule(**PAPER, batch_size=batch_size).resolve(num_images=1_281_167, world_size=world_size)
    assert length.accumulate == accumulate and length.global_batch_size == 4096
    assert (length.steps_per_epoch, length.max_steps, length.warmup_steps) == (312, 124_800, 12_480)
    assert length.lr == pytest.approx(2.4e-3)  # arXiv:2312.00863, Sec. 4.1
    assert "x 16 accumulated" in str(length) or accumulate != 16


def test_learning_rate_over_time() -> None:
    factors = [lr_factor(step, warmup_steps=10, max_steps=110, decay="cosine") for step in range(111)]
    assert factors[0] == 0 and factors[5] == 0.5 and factors[10] == 1
    assert factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert lr_factor(0, warmup_steps=0, max_steps=5, decay="cosine") == 1


@pytest.mark.parametrize(
    ("change", "num_images", "world_size", "message"),
    [
        ({"batch_size": 0}, 10_000, 1, "batch_size=0"),
        ({}, 10_000, 3, "cannot be shared by 3 devices"),
        ({}, 500, 1, "500 images do not fill one global batch of 4096"),
        ({"epochs": 40}, 10_000, 1, "longer than its warm-up"),
    ],
)
def test_impossible_lengths(change: dict, num_images: int, world_size: int, message: str) -> None:
    schedule = Schedule(**{**PAPER, "batch_size": 256, **change})
    with pytest.raises(ValueError, match=message):
        schedule.resolve(num_images=num_images, world_size=world_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": "abc"}, "epochs='abc': give a finite number"),
        ({"warmup_epochs": None}, "warmup_epochs=None: give a finite number"),
        ({"base_lr": float("nan")}, "base_lr=nan: give a finite number"),
        ({"global_batch_size": 4096.5}, "global_batch_size=4096.5: give a whole number"),
        ({"batch_size": True}, "batch_size=True: give a whole number"),
    ],
)
def test_what_is_no_number(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{**PAPER, "batch_size": 256, **change})


@pytest.mark.parametrize(("every", "number"), [(0.5, 16), (3, 3), (100, 1), (0.0, 8 * 13_999)])
def test_the_last_validation_is_at_the_end(every: float, number: int) -> None:
    """Of a run whose epochs have an odd number of steps: at most one step per validation is left over."""
    length = Schedule(epochs=8, warmup_epochs=0, base_lr=1e-3, global_batch_size=8, batch_size=8).resolve(
        num_images=8 * 13_999, world_size=1
    )
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(max_steps=None))
    trainer = SimpleNamespace(accumulate_grad_batches=None, fit_loop=loop, val_check_interval=None)
    length.apply_to(trainer, validate_every_epochs=every)
    assert length.max_steps // trainer.val_check_interval == number
    assert length.max_steps % trainer.val_check_interval < number
