"""Photos that could not be used: counted, listed, and too many of them stop the run."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from sami.cli import print0


class BrokenPhotos(pl.Callback):
    """Lists each broken photo once, with the reason, in `broken_photos.csv` of the run folder.

    Every rank has a file of its own past the first.

    Args:
        folder: of the run.
        max_rate: broken loads over all loads above which training stops, once `patience` are broken.
        patience: see `max_rate`; a single broken photo among the first hundred is no reason to stop.
    """

    def __init__(self, folder: str, *, max_rate: float, patience: int = 10) -> None:
        self.folder, self.max_rate, self.patience = Path(folder), max_rate, patience
        self.loaded = self.broken = 0
        self.listed: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        rank = trainer.global_rank
        self.path = self.folder / ("broken_photos.csv" if rank == 0 else f"broken_photos.rank{rank}.csv")
        if self.path.exists():  # of the run that is being continued
            with open(self.path, newline="") as file:
                self.listed.update(row["photo"] for row in csv.DictReader(file))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Raises ValueError above `max_rate`."""
        self.loaded += len(batch["image"]) + len(batch["broken"])
        self.broken += len(batch["broken"])
        self.list_new(batch["broken"])
        if self.broken >= self.patience and self.broken > self.max_rate * self.loaded:
            raise ValueError(
                f"{self.broken} of {self.loaded} photos could not be used, more than max_rate={self.max_rate}. They "
                f"are listed in {self.path}. Repair them, or raise callbacks.broken_photos.max_rate."
            )

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.list_new(batch["broken"])

    def list_new(self, broken: list[tuple[str, str]]) -> None:
        """Appends what is not in the file yet, and says so the first time."""
        new = [(photo, reason) for photo, reason in dict(broken).items() if photo not in self.listed]
        if not new:
            return
        if not self.listed:
            print0(
                f"a photo cannot be used and is left out: {new[0][0]} ({new[0][1]}); all such are listed in {self.path}"
            )
        header = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(["photo", "reason"])
            writer.writerows(new)
        self.listed.update(photo for photo, _ in new)

    def state_dict(self) -> dict[str, int]:
        return {"loaded": self.loaded, "broken": self.broken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.loaded, self.broken = state_dict["loaded"], state_dict["broken"]
