"""The course of a distillation as a picture: losses, maps and masks of every student."""

from matplotlib.figure import Figure

from sami.callbacks.curves import Curve

PANELS = {  # title: numbers, by the last part of their names
    "feature loss": ("feature_loss", "loss"),
    "explained variance": ("explained_variance",),
    "mIoU with the teacher's masks": ("teacher_point", "teacher_box"),
    "mIoU with true masks": ("box", "click_1"),
}


class DistillCurve(Curve):
    """Draws the numbers of `PANELS` over steps; dashed: what the teacher's own maps give."""

    def figure(self, curves: dict[str, list[tuple[int, float]]]) -> Figure:
        """See `Curve`."""
        figure = Figure(figsize=(16, 3.4), layout="constrained")
        for axes, (title, kinds) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for name, curve in curves.items():
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
        return figure
