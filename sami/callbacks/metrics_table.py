"""A run's numbers as a table, `metrics.csv`."""

import csv
import io
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from sami.files import append_rows, whole_file

HEADER = ("step", "metric", "value")


class TableLogger(Logger):
    """Appends rows of (step, metric, value) to `metrics.csv`.

    One number a row, so new metrics need no new columns and a continued run goes on in the same file: rows past the
    checkpoint it continues from are dropped first, since they are about to be made again. (Lightning's own CSV logger
    deletes the earlier file.)

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        return "table"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is in the run folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one row per metric."""
        rows = [(step, name, f"{value:.8g}") for name, value in metrics.items() if name != "epoch"]
        append_rows(self.path, HEADER, rows)

    @rank_zero_only
    def keep_before(self, step: int) -> None:
        """Drops rows from an optimiser step on, and a last line that a crash left unfinished."""
        if not self.path.exists():
            return
        rows = [row for row in read_table(self.path) if row[0] < step]
        with whole_file(self.path) as file:
            text = io.TextIOWrapper(file, newline="", write_through=True)
            csv.writer(text).writerows([HEADER, *((a, b, f"{c:.8g}") for a, b, c in rows)])
            text.detach()


def read_table(path: Path) -> list[tuple[int, str, float]]:
    """The rows of a `metrics.csv`; an unfinished last line is left out."""
    rows = []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            with suppress(TypeError, ValueError):
                rows.append((int(row["step"]), row["metric"], float(row["value"])))
    return rows
