"""The course of a run as a picture."""

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure

from sami.callbacks.metrics_table import read_table
from sami.files import whole_file
from sami.methods.base import Method, Panel


class Curves(pl.Callback):
    """Draws the panels of `Method.curves` after each validation and at the end.

    Args:
        table: the `metrics.csv` to draw.
        path: of the picture.
    """

    def __init__(self, table: str, path: str) -> None:
        self.table, self.path = Path(table), Path(path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero or not self.table.exists():
            return
        numbers: dict[str, list[tuple[int, float]]] = {}
        for step, name, value in read_table(self.table):
            numbers.setdefault(name, []).append((step, value))
        with whole_file(self.path) as file:
            draw_panels(pl_module.curves(list(numbers)), numbers).savefig(file, format="png", dpi=110)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Method) -> None:
        self.on_validation_end(trainer, pl_module)


def draw_panels(panels: list[Panel], numbers: dict[str, list[tuple[int, float]]]) -> Figure:
    """The panels side by side, of (step, value) by name; curves without numbers are left out."""
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for metric, label, color, level in panel.curves:
            points = numbers.get(metric)
            if points and level:
                axes.axhline(points[-1][1], linestyle="--", color=color, linewidth=1, label=label)
            elif points:
                style = "-" if metric.startswith("train/") else "o-"
                axes.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=3, linewidth=1)
        axes.set(title=panel.title, xlabel="step", yscale="log" if panel.log else "linear")
        if panel.limits:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, panel.limits[0]), min(high, panel.limits[1]))
        if axes.lines:
            axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside what it names
    return figure
