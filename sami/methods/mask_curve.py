"""The course of a fine-tuning as a picture: the loss, and for each validation set what prompts give."""

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure

from sami.data.whole_file import whole_file
from sami.methods.logs import read_table

CURVES = ("box", "click_1", "click_3", "click_5", "uniform_1")
TRIVIAL = {"filled_box": "box", "click_disc": "click_1", "uniform_disc": "uniform_1"}  # and what it is to be beaten by


class MaskCurve(pl.Callback):
    """Draws loss and mIoU over steps after each validation; dashed: the trivial answers, in the colour of their rival.

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
        points: dict[str, list[tuple[int, float]]] = {}
        for step, name, value in read_table(self.table):
            points.setdefault(name, []).append((step, value))
        places = sorted({name.rpartition("/")[0] for name in points if name.startswith("val/")})
        figure = Figure(figsize=(5 * (1 + len(places)), 3.6), layout="constrained")
        first, *panels = figure.subplots(1, 1 + len(places), squeeze=False)[0]
        if "train/loss" in points:
            first.plot(*zip(*points["train/loss"], strict=True), linewidth=1)
        first.set(title="loss", xlabel="step", yscale="log")
        for axes, place in zip(panels, places, strict=True):
            for number, kind in enumerate(CURVES):
                if f"{place}/{kind}" in points:
                    curve = zip(*points[f"{place}/{kind}"], strict=True)
                    axes.plot(*curve, "o-", color=f"C{number}", label=kind, markersize=3, linewidth=1)
            for kind, rival in TRIVIAL.items():
                if f"{place}/{kind}" in points:
                    value = points[f"{place}/{kind}"][-1][1]
                    axes.axhline(value, linestyle="--", color=f"C{CURVES.index(rival)}", linewidth=1, label=kind)
            axes.set(title=f"mIoU, {place.removeprefix('val').strip('/') or 'validation'}", xlabel="step", ylim=(0, 1))
            axes.legend(fontsize="x-small")
        with whole_file(self.path) as file:
            figure.savefig(file, format="png", dpi=110)
