"""Schedule of a run: steps, learning rate, batches and accumulation, from the recipe and the devices at hand."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import pytorch_lightning as pl


class RunLength(NamedTuple):
    """A schedule worked out for one data set and one number of devices."""

    batch_size: int  # images per batch and device
    world_size: int
    accumulate: int  # batches per optimiser step and device
    epoch_size: int  # images of an epoch: whole global batches
    steps_per_epoch: int
    max_steps: int
    warmup_steps: int
    lr: float

    @property
    def global_batch_size(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.world_size * self.accumulate

    @property
    def num_batches(self) -> int:
        """Batches of the whole run on one device."""
        return self.max_steps * self.accumulate

    def apply_to(self, trainer: pl.Trainer, *, validate_every_epochs: float) -> None:
        """Makes a trainer accumulate, validate and stop as the run length says."""
        trainer.accumulate_grad_batches = self.accumulate
        # private, and the only way: how many devices share a step is known once there is a trainer
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps
        number = max(1, round(self.max_steps / max(1, validate_every_epochs * self.steps_per_epoch)))
        every = max(1, self.max_steps // number)  # so that the last one sees the weights that the run ends with
        trainer.val_check_interval = every * self.accumulate

    def __str__(self) -> str:
        return (
            f"global batch {self.global_batch_size} = {self.batch_size} images x {self.world_size} devices x "
            f"{self.accumulate} accumulated; {self.steps_per_epoch} steps per epoch, {self.max_steps} in all, "
            f"{self.warmup_steps} of warm-up; peak learning rate {self.lr:.3g}"
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The recipe's numbers: epochs, learning rate and global batch; `resolve` turns them into steps and accumulation.

    The learning rate warms up linearly and goes down to zero, per step: by a half cosine (arXiv:2312.00863, Sec. 4.1,
    as MAE), or in a straight line where the method says so.

    Raises:
        ValueError: an argument is no number, or not finite, or not whole where it counts images.
    """

    epochs: float
    warmup_epochs: float
    base_lr: float  # the peak is base_lr * global_batch_size / 256; the paper's 2.4e-3 at 4096 is 1.5e-4 here
    global_batch_size: int  # images per optimiser step over all devices; the recipe's number, whatever the machine
    batch_size: int  # at most, per device, what fits its memory; the rest is accumulated, in smaller ones if need be

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type is int
            is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise ValueError(f"{field.name}={value!r}: give a {'whole' if whole else 'finite'} number")

    def resolve(self, *, num_images: int, world_size: int) -> RunLength:
        """The numbers for this data set and these devices.

        Raises:
            ValueError: the global batch cannot be shared by these devices, or is larger than the data set, or warm-up
                is not shorter than training.
        """
        share, rest = divmod(self.global_batch_size, world_size)  # images per device
        if rest or share < 1 or self.batch_size < 1:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} in batches of batch_size={self.batch_size} cannot be "
                f"shared by {world_size} devices: both positive, the first a multiple of the number of devices"
            )
        batch_size = max(size for size in range(1, min(self.batch_size, share) + 1) if share % size == 0)
        steps_per_epoch = num_images // self.global_batch_size
        if steps_per_epoch == 0:
            raise ValueError(
                f"{num_images} images do not fill one global batch of {self.global_batch_size}: "
                f"lower schedule.global_batch_size to {num_images} or less"
            )
        max_steps, warmup_steps = round(self.epochs * steps_per_epoch), round(self.warmup_epochs * steps_per_epoch)
        if max_steps < 1 or warmup_steps >= max_steps:
            raise ValueError(
                f"epochs={self.epochs} with warmup_epochs={self.warmup_epochs}: "
                "training has to last a step at least and longer than its warm-up"
            )
        return RunLength(
            batch_size=batch_size,
            world_size=world_size,
            accumulate=share // batch_size,
            epoch_size=steps_per_epoch * self.global_batch_size,
            steps_per_epoch=steps_per_epoch,
            max_steps=max_steps,
            warmup_steps=warmup_steps,
            lr=self.base_lr * self.global_batch_size / 256,
        )


def lr_factor(step: int, *, warmup_steps: int, max_steps: int, decay: str = "cosine") -> float:
    """The learning rate of optimiser step `step` (from 0) as a fraction of its peak: linear warm-up, then down to zero.

    Args:
        decay: "cosine", half of one (arXiv:2312.00863, Sec. 4.1, as MAE), or "linear" (ibid., fine-tuning on SA-1B).
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (max_steps - warmup_steps))
    return 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
