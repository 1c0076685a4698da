"""The course of a run as a picture."""

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure

from sami.callbacks.metrics_table import read_table
from sami.files import whole_file


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
