"""Files a run can be continued from, and the weights that it is for in files of their own."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sami.cli import print0
from sami.files import whole_file
from sami.methods.base import Method
from sami.models.weights import save_weights
from sami.preemption import Consensus, Preempted, on_signal

CONTRACT_FORMAT = 2  # raised where settings change their names


class WholeFileIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints: written whole, read as tensors and plain containers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes `checkpoint` to `path`; see `whole_file`."""
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        """The checkpoint at `path`.

        Raises:
            ValueError: it cannot be read. Starting again in silence would throw the run away.
        """
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, OSError, ...
            raise ValueError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}: {str(error)[:200]}). "
                "Move it away to start this run from the beginning, or give the run another name."
            ) from error


def trainer_plugins() -> list[Any]:
    """What a trainer needs for our checkpoints: their file format, and on SLURM nobody else who requeues the job."""
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [WholeFileIO(), *slurm]


class RunCheckpoint(pl.Callback):
    """Writes everything that is needed to continue: every few minutes, on request, and at the end.

    A request is SIGTERM, SIGUSR1 or Ctrl-C: all ranks write at the end of the same step and leave with `EXIT_REQUEUE`.
    At the last step it writes after validation only, so that a run that counts as finished has had it.

    Args:
        path: of the file; there is one, replaced each time.
        every_minutes: by the clock of the first rank.
        every_n_steps: optimiser steps, in addition; None for never.
        contract: settings that a continued run must share, by dotted name, see `sami.training.check_contract`.
    """

    def __init__(self, path: str, *, every_minutes: float, every_n_steps: int | None, contract: dict[str, Any]) -> None:
        self.path, self.every_minutes, self.every_n_steps = Path(path), every_minutes, every_n_steps
        self.contract, self.requested = contract, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.consensus, self.written = Consensus(), time.monotonic()
        on_signal(self.request)  # here, since Lightning installs handlers of its own before
        # it also asks all ranks for a SIGTERM before every batch and waits for their answers, which ours replaces
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def request(self) -> None:
        """Remembers that the run shall stop."""
        self.requested = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, between = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if between or step >= trainer.max_steps:
            return
        waited = trainer.is_global_zero and time.monotonic() - self.written > 60 * self.every_minutes
        stop, due = self.consensus.any(self.requested, waited)
        if stop or due or (self.every_n_steps and step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()
        if stop:
            print0(f"asked to stop: wrote {self.path} at step {step}; the same command continues")
            raise Preempted

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.consensus.finish()
        trainer.save_checkpoint(self.path)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Counts the batches that were done in batches of this run: another machine may accumulate more or fewer."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            change = checkpoint["global_step"] * trainer.accumulate_grad_batches - counts["processed"]
            counts.update({name: counts[name] + change for name in ("ready", "started", "processed", "completed")})

    def state_dict(self) -> dict[str, Any]:
        return {"contract": self.contract, "contract_format": CONTRACT_FORMAT}


class WeightsExport(pl.Callback):
    """Writes `Method.exports` with every checkpoint, each file whole.

    Args:
        folder: of the files.
        metadata: strings to keep in the files' headers, such as the settings of the run.
    """

    def __init__(self, folder: str, *, metadata: dict[str, str]) -> None:
        self.folder, self.metadata = Path(folder), metadata

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Method, checkpoint: dict) -> None:
        if not trainer.is_global_zero:
            return
        for name, (weights, own) in pl_module.exports().items():
            header = {**self.metadata, **own, "step": str(trainer.global_step)}
            save_weights(weights, self.folder / name, metadata=header)
