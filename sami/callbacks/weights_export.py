"""The weights that a run is for, in files of their own."""

from pathlib import Path

import pytorch_lightning as pl

from sami.methods.base import Method
from sami.models.weights import save_weights


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
