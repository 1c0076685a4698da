"""The course of a distillation as a picture: losses, maps and masks of every student."""

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure

from sami.data.whole_file import whole_file
from sami.methods.logs import read_table

PANELS = {  # title: numbers, by the last part of their names
    "feature loss": ("feature_loss", "loss"),
    "explained variance": ("explained_variance",),
    "mIoU with the teacher's masks": ("teacher_point", "teacher_box"),
    "mIoU with true masks": ("box", "click_1"),
}


class DistillCurve(pl.Callback):
    """Draws the numbers of `PANELS` over steps after each validation; dashed: what the teacher's own maps give.

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
        figure = Figure(figsize=(16, 3.4), layout="constrained")
        for axes, (title, kinds) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for name, curve in points.items():
                place, _, kind = name.rpartition("/")
                if kind not in kinds or name == "train/loss":  # the sum over students
                    continue
                label = name.replace("train/", "training, ").removeprefix("val/")
                if place.endswith("of_teacher"):
                    axes.axhline(curve[-1][1], linestyle="--", linewidth=1, color="grey", label=label)
                else:
                    axes.plot(
                        *zip(*curve, strict=True), "-" if kind == "feature_loss" else "o-", label=label, markersize=3
                    )
            axes.set(title=title, xlabel="step", yscale="log" if "loss" in title else "linear")
            if title == "explained variance" and axes.get_ylim()[0] < -0.5:
                axes.set_ylim(-0.5, 1)  # an untrained map is off by any factor; what follows is worth seeing
            if axes.lines:
                axes.legend(fontsize="x-small")
        with whole_file(self.path) as file:
            figure.savefig(file, format="png", dpi=110)
