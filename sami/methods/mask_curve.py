"""The course of a fine-tuning as a picture: the loss, and for each validation set what prompts give."""

from matplotlib.figure import Figure

from sami.callbacks.curves import Curve

CURVES = ("box", "click_1", "click_3", "click_5", "uniform_1", "zoomed_box")
TRIVIAL = {"filled_box": "box", "click_disc": "click_1", "uniform_disc": "uniform_1"}  # and what it is to be beaten by


class MaskCurve(Curve):
    """Loss and mIoU over steps; dashed: the trivial answers, in the colour of their rival."""

    def figure(self, curves: dict[str, list[tuple[int, float]]]) -> Figure:
        """See `Curve`."""
        places = sorted({name.rpartition("/")[0] for name in curves if name.startswith("val/")})
        figure = Figure(figsize=(5 * (1 + len(places)), 3.6), layout="constrained")
        first, *panels = figure.subplots(1, 1 + len(places), squeeze=False)[0]
        if "train/loss" in curves:
            first.plot(*zip(*curves["train/loss"], strict=True), linewidth=1)
        first.set(title="loss", xlabel="step", yscale="log")
        for axes, place in zip(panels, places, strict=True):
            for number, kind in enumerate(CURVES):
                if f"{place}/{kind}" in curves:
                    points = zip(*curves[f"{place}/{kind}"], strict=True)
                    axes.plot(*points, "o-", color=f"C{number}", label=kind, markersize=3, linewidth=1)
            for kind, rival in TRIVIAL.items():
                if f"{place}/{kind}" in curves:
                    value = curves[f"{place}/{kind}"][-1][1]
                    axes.axhline(value, linestyle="--", color=f"C{CURVES.index(rival)}", linewidth=1, label=kind)
            axes.set(title=f"mIoU, {place.removeprefix('val').strip('/') or 'validation'}", xlabel="step", ylim=(0, 1))
            axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside what it names
        return figure
