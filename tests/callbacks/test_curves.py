from sami.callbacks.curves import draw_panels
from sami.methods.base import Curve, Panel, panels


def test_curves_levels_and_limits() -> None:
    numbers = {"train/loss": [(0, 2.0), (5, 1.0)], "val/box": [(0, -9.0), (5, 0.5)], "val/filled_box": [(5, 0.4)]}
    curves = [
        Curve("val/box", "box", "C0"),
        Curve("val/filled_box", "filled", "C0", level=True),
        Curve("val/none", "none"),
    ]
    shown = [Panel("loss", [Curve("train/loss", "train")], log=True), Panel("mIoU", curves, limits=(0.0, 1.0))]
    loss, miou = draw_panels(shown, numbers).axes
    assert loss.get_yscale() == "log" and list(loss.lines[0].get_ydata()) == [2.0, 1.0]
    assert [line.get_label() for line in miou.lines] == ["box", "filled"]
    assert miou.lines[1].get_linestyle() == "--" and set(miou.lines[1].get_ydata()) == {0.4}
    assert miou.get_ylim()[0] == 0
    draw_panels([Panel("nothing", [])], {})


def test_panels_by_the_last_part_of_a_name() -> None:
    metrics = ["train/loss", "val/knn", "val/coco/vit_t/box", "val/of_teacher/box", "speed/data"]
    loss, masks = panels(metrics, {"loss": ["loss"], "mIoU": ["box"]})
    assert loss.log and [curve.metric for curve in loss.curves] == ["train/loss"]
    assert [(curve.metric, curve.level) for curve in masks.curves] == [(metrics[2], False), (metrics[3], True)]
