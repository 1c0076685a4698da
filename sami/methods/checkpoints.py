"""Files a run can be continued from, and the backbone it is all for."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import Tensor

from sami.data.whole_file import whole_file


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
                f"the checkpoint {path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Move it away to start this run from the beginning, or give the run another name."
            ) from error


class RunCheckpoint(pl.Callback):
    """Writes everything that is needed to continue, every few optimiser steps and at the end.

    Args:
        path: of the file; there is one, replaced each time.
        every_n_steps: optimiser steps.
        contract: settings that a continued run must share, by dotted name; a run with others is refused.
    """

    def __init__(self, path: str, *, every_n_steps: int, contract: dict[str, Any]) -> None:
        self.path, self.every_n_steps, self.contract = Path(path), every_n_steps, contract

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % (self.every_n_steps * trainer.accumulate_grad_batches) == 0:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"contract": self.contract}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the checkpoint's settings with this run's.

        Raises:
            ValueError: they differ; the message lists all differences.
        """
        before, now = state_dict["contract"], self.contract
        differences = [
            f"{name}: {before.get(name)} in the checkpoint, {now.get(name)} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if differences:
            raise ValueError(
                f"{self.path} belongs to a run with other settings:\n  "
                + "\n  ".join(differences)
                + "\nUse the same settings to continue it, or another name=... to start a new run."
            )


class BackboneExport(pl.Callback):
    """Writes the encoder under timm's names after each validation and at the end.

    `timm.create_model("vit_small_patch16_224", num_classes=0, checkpoint_path=path)` loads it strictly.

    Args:
        path: of the .safetensors file.
        recipe: strings to keep in the file's header, such as the teacher and the mask ratio.
    """

    def __init__(self, path: str, *, recipe: dict[str, str]) -> None:
        self.path, self.recipe = Path(path), recipe

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.export(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.export(trainer, pl_module)

    def export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file, on the first rank."""
        if not trainer.is_global_zero:
            return
        encoder = pl_module.student.encoder
        tensors: dict[str, Tensor] = {
            name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()
        }
        header = {
            **self.recipe,
            "model": f"vit_{encoder.size}_patch{encoder.patch_size}",
            "step": str(trainer.global_step),
        }
        with whole_file(self.path) as file:
            file.write(save(tensors, metadata={"format": "pt", **header}))
