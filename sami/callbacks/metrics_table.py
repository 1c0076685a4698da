"""Where numbers go: a table in the run folder always, Weights & Biases when asked, a curve to look at."""

import csv
import io
import os
import socket
from argparse import Namespace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from sami.files import whole_file
from sami.callbacks.progress import say


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
        header = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(["step", "metric", "value"])
            writer.writerows((step, name, f"{value:.8g}") for name, value in metrics.items() if name != "epoch")

    @rank_zero_only
    def keep_before(self, step: int) -> None:
        """Drops rows from an optimiser step on, and a last line that a crash left unfinished."""
        if not self.path.exists():
            return
        rows = [row for row in read_table(self.path) if row[0] < step]
        with whole_file(self.path) as file:
            text = io.TextIOWrapper(file, newline="", write_through=True)
            csv.writer(text).writerows([("step", "metric", "value"), *((a, b, f"{c:.8g}") for a, b, c in rows)])
            text.detach()


def read_table(path: Path) -> list[tuple[int, str, float]]:
    """The rows of a `metrics.csv`; an unfinished last line is left out."""
    rows = []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append((int(row["step"]), row["metric"], float(row["value"])))
            except (TypeError, ValueError):
                continue
    return rows


class Curve(pl.Callback):
    """Draws what `figure` makes of a run's numbers, after each validation and at the end.

    Args:
        table: the `metrics.csv` to draw.
        path: of the picture.
    """

    def __init__(self, table: str, path: str) -> None:
        self.table, self.path = Path(table), Path(path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.draw(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.draw(trainer)

    def draw(self, trainer: pl.Trainer) -> None:
        """Writes the picture, on the first rank."""
        if not trainer.is_global_zero or not self.table.exists():
            return
        curves: dict[str, list[tuple[int, float]]] = {}
        for step, name, value in read_table(self.table):
            curves.setdefault(name, []).append((step, value))
        with whole_file(self.path) as file:
            self.figure(curves).savefig(file, format="png", dpi=110)

    def figure(self, curves: dict[str, list[tuple[int, float]]]) -> Figure:
        """The picture of (step, value) by metric."""
        raise NotImplementedError


class LossCurve(Curve):
    """Loss, explained variance and k-NN accuracy over steps."""

    panels = (("loss", "loss"), ("explained_variance", "explained variance"), ("knn", "k-NN accuracy"))

    def figure(self, curves: dict[str, list[tuple[int, float]]]) -> Figure:
        """See `Curve`."""
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        for axes, (metric, title) in zip(figure.subplots(1, len(self.panels)), self.panels, strict=True):
            for stage, style in (("train", "-"), ("val", "o-")):
                if f"{stage}/{metric}" in curves:
                    points = zip(*curves[f"{stage}/{metric}"], strict=True)
                    axes.plot(*points, style, label=stage, markersize=3, linewidth=1)
            axes.set(title=title, xlabel="step", yscale="log" if metric == "loss" else "linear")
            if metric == "explained_variance" and axes.get_ylim()[0] < -0.5:
                axes.set_ylim(-0.5, 1)  # an untrained head is off by any factor; what follows is worth seeing
            if axes.lines:
                axes.legend()
        return figure


def wandb_logger(*, project: str, name: str, folder: str, **options: Any) -> WandbLogger:
    """Lightning's W&B logger, which goes offline where there is no login or no network instead of waiting for them.

    Args:
        project: on W&B.
        name: of the run; a continued run goes on under the same.
        folder: of the run; offline runs are kept in it.
        options: for `WandbLogger`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    reachable = bool(getproxies()) or answers(server.hostname, server.port or 443)  # a proxy answers for others
    offline = os.environ.get("WANDB_MODE") == "offline" or not has_login(server.hostname) or not reachable
    if offline:
        say(f"wandb: no login or no network, logging offline. Later: wandb sync {folder}/wandb/offline-run-*")
    run = {"name": name, "id": name.replace("/", "-"), "resume": "allow"}  # a continued run is the same run there
    return WandbLogger(project=project, save_dir=folder, offline=offline, **run, **options)


def has_login(host: str) -> bool:
    """Whether W&B would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and host in netrc.read_text()


def answers(host: str, port: int) -> bool:
    """Whether a connection opens within three seconds."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False
