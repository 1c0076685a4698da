"""A non-finite loss must not reach the weights, and must be explainable afterwards."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from sami.files import whole_file
from sami.methods.base import Method


class NonFiniteGuard(pl.Callback):
    """Stops training before the optimiser step that a non-finite loss or gradient would spoil.

    The gradient's norm decides: a loss that is not finite makes it so, and after the all-reduce of data-parallel
    training it is the same number on every rank. Whether it is finite is kept on the device and handed to the fused
    optimiser as `found_inf`, which skips the step without asking the host; once set it stays set, so the weights
    remain those from before the bad step until the host looks, every `check_every_n_steps` and before a checkpoint.

    What is written then: the weights, the step, and the images of that step. The views and masks follow from seed and
    step, so this is enough to run the step again.

    Args:
        path: of the file to write.
        check_every_n_steps: how often to look on a GPU, where looking waits for it. On a CPU: always.
    """

    def __init__(self, path: str, *, check_every_n_steps: int) -> None:
        self.path, self.check_every_n_steps = Path(path), check_every_n_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Method) -> None:
        if trainer.precision == "16-mixed":
            raise ValueError("precision=16-mixed: fp16 overflows on these losses; use bf16-mixed or 32-true")
        self.bad = torch.zeros((), device=pl_module.device)  # 1 from the first bad step on
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=pl_module.device)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Method, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = torch.maximum(self.bad, (~torch.isfinite(norm)).float())
        self.bad_step = torch.where((bad > 0) & (self.bad == 0), trainer.global_step, self.bad_step)
        self.bad = bad
        vars(optimizer).update(grad_scale=None, found_inf=self.bad)  # torch's fused optimisers read them
        if (trainer.global_step + 1) * trainer.accumulate_grad_batches % pl_module.batches_per_log == 0:
            pl_module.log("train/grad_norm", norm)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = 1 if pl_module.device.type == "cpu" else self.check_every_n_steps * trainer.accumulate_grad_batches
        if (batch_idx + 1) % every == 0:
            self.check(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Method) -> None:
        if trainer.state.fn == "fit":
            self.check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Method, checkpoint: dict) -> None:
        self.check(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Method) -> None:
        self.check(trainer, pl_module)

    def check(self, trainer: pl.Trainer, pl_module: Method) -> None:
        """Looks, and stops the run if a step was bad.

        Raises:
            FloatingPointError: a step was.
        """
        if not self.bad.item():
            return
        step = int(self.bad_step)
        data, length = pl_module.data, pl_module.run_length
        positions = range(step * length.global_batch_size, (step + 1) * length.global_batch_size)
        order = data.train_order()
        replay = {
            "step": step,
            "seed": data.seed,
            "positions": [positions.start, positions.stop],
            "images": [data.train_source.name(*order.locate(position)) for position in positions],
            "state_dict": pl_module.state_dict(),
        }
        if trainer.is_global_zero:
            with whole_file(self.path) as file:
                torch.save(replay, file)
        raise FloatingPointError(
            f"the loss or its gradient was not finite at step {step}. The weights from before that step, and what it "
            f"saw, are in {os.path.abspath(self.path)}; the last checkpoint is from before it too. A lower "
            "schedule.base_lr, a longer warm-up, or precision=32-true are the usual cures."
        )
