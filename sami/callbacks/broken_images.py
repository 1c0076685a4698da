"""Images that could not be used: counted, listed, and too many of them stop the run."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from sami.cli import print0
from sami.files import append_rows


class BrokenImages(pl.Callback):
    """Lists each broken image once, with the reason, in `broken_images.csv` of the run folder.

    Every rank has a file of its own past the first.

    Args:
        folder: of the run.
        max_rate: broken loads over all loads above which training stops, once `patience` are broken.
        patience: see `max_rate`; a single broken image among the first hundred is no reason to stop.
    """

    def __init__(self, folder: str, *, max_rate: float, patience: int = 10) -> None:
        self.folder, self.max_rate, self.patience = Path(folder), max_rate, patience
        self.loaded = self.broken = 0
        self.listed: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        rank = trainer.global_rank
        self.path = self.folder / ("broken_images.csv" if rank == 0 else f"broken_images.rank{rank}.csv")
        if self.path.exists():  # of the run that is being continued
            with open(self.path, newline="") as file:
                self.listed.update(row["image"] for row in csv.DictReader(file))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Raises ValueError above `max_rate`."""
        self.loaded += len(batch["image"]) + len(batch["broken"])
        self.broken += len(batch["broken"])
        self.list_new(batch["broken"])
        if self.broken >= self.patience and self.broken > self.max_rate * self.loaded:
            raise ValueError(
                f"{self.broken} of {self.loaded} images could not be used, more than max_rate={self.max_rate}. They "
                f"are listed in {self.path}. Repair them, or raise callbacks.broken_images.max_rate."
            )

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: int) -> None:
        self.list_new(batch["broken"])

    def list_new(self, broken: list[tuple[str, str]]) -> None:
        """Appends what is not in the file yet, and says so the first time."""
        new = [(image, reason) for image, reason in dict(broken).items() if image not in self.listed]
        if not new:
            return
        if not self.listed:
            print0(f"an image cannot be used and is left out: {new[0][0]} ({new[0][1]}); {self.path} lists all such")
        append_rows(self.path, ("image", "reason"), new)
        self.listed.update(image for image, _ in new)

    def state_dict(self) -> dict[str, int]:
        return {"loaded": self.loaded, "broken": self.broken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.loaded, self.broken = state_dict["loaded"], state_dict["broken"]
