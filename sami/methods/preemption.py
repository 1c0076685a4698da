"""Being asked to leave: finish the step, write, and say that there is more to do."""

import signal
from typing import Any

import pytorch_lightning as pl

from sami.methods.progress import say

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the job failed for now, run it again


class Preempted(SystemExit):
    """The run stopped on request and can be continued; ends the process with `EXIT_REQUEUE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_REQUEUE)


class Preemption(pl.Callback):
    """On SIGTERM or SIGUSR1, writes a checkpoint at the end of a step and leaves with `EXIT_REQUEUE`.

    Ranks agree on the step first: a signal reaches them at different times, and one that left alone would leave the
    others waiting.

    Args:
        path: of the checkpoint.
        check_every_n_steps: how often several ranks ask each other; a single one looks after every step.
    """

    def __init__(self, path: str, *, check_every_n_steps: int) -> None:
        self.path, self.check_every_n_steps, self.requested = path, check_every_n_steps, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # here, since Lightning installs its own handlers (which end the run without a checkpoint) before training
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.request)

    def request(self, *_: Any) -> None:
        """Remembers the signal."""
        self.requested = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = 1 if trainer.world_size == 1 else self.check_every_n_steps
        if (batch_idx + 1) % (every * trainer.accumulate_grad_batches):
            return
        if trainer.strategy.reduce_boolean_decision(self.requested, all=False):
            trainer.save_checkpoint(self.path)
            say(f"asked to stop: wrote {self.path} at step {trainer.global_step}; the same command continues")
            raise Preempted
