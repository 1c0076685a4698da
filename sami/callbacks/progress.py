"""What a person sees while a run goes on."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from sami.cli import print0
from sami.methods.base import Method


class RunBar(TQDMProgressBar):
    """One bar for the whole run. To Lightning a run is a single epoch; a person is told the epoch of the data."""

    def on_train_start(self, *_: Any) -> None:
        """Begins where a continued run does; Lightning sets the total at the start of an epoch only."""
        super().on_train_start(*_)
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.initial = self.trainer.global_step * self.trainer.accumulate_grad_batches
        self.train_progress_bar.set_description("training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """Nothing: see `on_train_start`."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: Method) -> dict[str, Any]:
        """Without the run's version number, with the epoch."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        shown = {name.split("/")[-1].replace("images_per_second", "img/s"): value for name, value in metrics.items()}
        return {"epoch": f"{trainer.global_step / pl_module.run_length.steps_per_epoch:.2f}", **shown}


class ValidationLine(pl.Callback):
    """Prints one line after each validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Method) -> None:
        numbers = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if numbers:
            text = ", ".join(f"{name.removeprefix('val/')} {float(value):.4g}" for name, value in numbers.items())
            epoch = trainer.global_step / pl_module.run_length.steps_per_epoch
            print0(f"step {trainer.global_step} (epoch {epoch:.2f}): validation {text}")
