"""The weights that a run is for, in files of their own."""

from pathlib import Path

import pytorch_lightning as pl
from safetensors.torch import save

from sami.files import whole_file
from sami.methods.base import Method


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
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
            with whole_file(self.folder / name) as file:
                file.write(save(tensors, metadata={**self.metadata, **own, "step": str(trainer.global_step)}))
