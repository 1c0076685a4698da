"""How fast training runs, and where its time goes."""

import time
from typing import Any

import pytorch_lightning as pl

from sami.methods.base import Method


class Throughput(pl.Callback):
    """Logs images/s over all ranks, and the shares of time waiting for data and in the stages of the method's clock.

    What is left, `Method.rest`, is the student's forward and backward pass, the optimiser, and the trainer around them.
    On a GPU the wait for data is the host's, which may be ahead of the GPU: it is an upper bound of the GPU's own.
    Validation is not counted.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Method) -> None:
        if trainer.training or trainer.validating:
            self.restart(trainer, pl_module)

    def restart(self, trainer: pl.Trainer, pl_module: Method) -> None:
        """Forgets what was counted."""
        self.loader: Any = trainer.train_dataloader
        if hasattr(self.loader, "seconds_waited"):  # else this is the validation before training
            pl_module.clock.collect()
            self.images, self.began, self.waited = 0, time.perf_counter(), self.loader.seconds_waited

    def on_train_start(self, trainer: pl.Trainer, pl_module: Method) -> None:
        self.restart(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += len(batch["image"]) * trainer.world_size
        if (batch_idx + 1) % pl_module.batches_per_log:
            return
        stages = pl_module.clock.collect()
        elapsed = time.perf_counter() - self.began
        data = (self.loader.seconds_waited - self.waited) / elapsed
        shares = {stage: seconds / elapsed for stage, seconds in stages.items()}
        pl_module.log("speed/images_per_second", self.images / elapsed, prog_bar=True)
        shares |= {"data": data, pl_module.rest: 1 - data - sum(shares.values())}
        pl_module.log_dict({f"speed/{name}": share for name, share in shares.items()})
        self.restart(trainer, pl_module)
