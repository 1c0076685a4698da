"""Boxes in windows of an image, with a model that only has to be the same each time."""

import numpy as np
import pytest
import torch
from conftest import draw_image

from sami.models.build import build_sam
from sami.models.sam import Sam
from sami.predict.predictor import SamPredictor
from sami.predict.zoom import predict_zoomed, window_around

IMAGE = draw_image(0, height=120, width=160)


@pytest.fixture(scope="module", params=["pad", "stretch"])
def model(request) -> Sam:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_sam("efficient_sam_vitt", decoder="sam", resize_mode=request.param, image_size=64)


def test_it_is_the_predictor_with_a_window_of_the_image(model) -> None:
    """Six boxes, more than are looked at together, one of them at the edge and one over it."""
    boxes = [(20, 20, 40, 36), (60, 50, 100, 60), (0, 0, 30, 20), (150, 110, 170, 118.5), (5, 5, 155, 115)]
    boxes.append((80, 8, 81, 9))
    windows = [(8, 10, 40, 40), (15, 40, 80, 80), (0, 0, 60, 60), (100, 140, 20, 20), (0, 0, 120, 160), (4, 76, 8, 8)]
    for several in (True, False):
        masks, ious = predict_zoomed(model, IMAGE, boxes, multimask_output=several)
        K = 3 if several else 1
        assert masks.shape == (6, K, 120, 160) and masks.dtype == bool
        assert ious.shape == (6, K) and ious.dtype == np.float32
        predictor = SamPredictor(model)
        for number, (box, (top, left, height, width)) in enumerate(zip(boxes, windows, strict=True)):
            predictor.set_image(IMAGE[top : top + height, left : left + width])
            inside = np.clip(box, 0, [160, 120, 160, 120]) - [left, top, left, top]
            expected, expected_ious, _ = predictor.predict(box=inside, multimask_output=several)
            part = (number, slice(None), slice(top, top + height), slice(left, left + width))
            assert (masks[part] != expected).mean() < 1e-3 and masks[number].sum() == masks[part].sum()
            np.testing.assert_allclose(ious[number], expected_ious, atol=1e-4)


def test_a_mask_lies_where_its_box_is(model, monkeypatch) -> None:
    """A decoder that fills the box: to half a cell of the window, whatever the magnification."""

    def fill(self, side, point_coords, point_labels, mask_input=None, *, multimask_output):
        grid = 4 * torch.arange(16) + 2.0
        (x0, y0), (x1, y1) = point_coords[0, 0].tolist()
        columns, rows = torch.minimum(grid - x0, x1 - grid), torch.minimum(grid - y0, y1 - grid)  # [16]
        return torch.minimum(columns, rows.unsqueeze(1))[None, None, None], torch.ones(1, 1, 1)

    monkeypatch.setattr(Sam, "decode", fill)
    for box in ([30, 40, 50, 64], [100, 20, 148, 50], [60, 60, 66, 64], [120, 90, 160, 120]):
        masks, _ = predict_zoomed(model, IMAGE, [box], multimask_output=False)
        rows, columns = np.nonzero(masks[0, 0])
        cell = 2 * max(box[2] - box[0], box[3] - box[1]) / 16
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(found) - box).max() <= max(cell / 2, 1), box


def test_order_of_channels_and_grey_images(model) -> None:
    box = [[20, 20, 60, 50]]
    masks, _ = predict_zoomed(model, IMAGE, box)
    turned, _ = predict_zoomed(model, IMAGE[..., ::-1], box, image_format="BGR")
    assert (masks == turned).all()
    grey, _ = predict_zoomed(model, IMAGE[..., 0], box)
    assert grey.shape == (1, 3, 120, 160)
    none, ious = predict_zoomed(model, IMAGE, [])
    assert none.shape == (0, 3, 120, 160) and ious.shape == (0, 3)


def test_wrong_boxes_are_told(model) -> None:
    with pytest.raises(ValueError, match="has no area"):
        predict_zoomed(model, IMAGE, [[20, 20, 60, 50], [30, 30, 30, 40]])
    with pytest.raises(ValueError, match="outside the image, 160 wide"):
        predict_zoomed(model, IMAGE, [[170, 20, 190, 50]])
    with pytest.raises(ValueError, match=r"boxes are \[4\]: give \[Q, 4\]"):
        predict_zoomed(model, IMAGE, [20, 20, 60, 50])
    with pytest.raises(ValueError, match=r"boxes are \[\]: give \[Q, 4\]"):
        predict_zoomed(model, IMAGE, 20)
    with pytest.raises(ValueError, match="boxes is not an array of numbers"):
        predict_zoomed(model, IMAGE, [[20, 20, 60], [1, 2, 3, 4]])


def test_a_window_is_square_and_holds_its_box() -> None:
    rng = torch.Generator().manual_seed(3)
    for _ in range(300):
        H, W = torch.randint(20, 200, (2,), generator=rng).tolist()
        (x0, x1), (y0, y1) = (sorted((torch.rand(2, generator=rng) * side).tolist()) for side in (W, H))
        window = window_around((x0, y0, x1, y1), (H, W), image_size=64)
        top, left, height, width = window
        assert min(window) >= 0 and top + height <= H and left + width <= W
        assert left - 0.51 <= x0 and x1 <= left + width + 0.51 and top - 0.51 <= y0 and y1 <= top + height + 0.51
        side = max(2 * max(x1 - x0, y1 - y0), 8)
        for length, whole in ((height, H), (width, W)):
            assert side <= length < side + 1 or length == whole < side + 1


def test_where_a_window_lies() -> None:
    middle = window_around((40, 50, 60, 58), (100, 200), image_size=64)
    assert middle == (34, 30, 40, 40)  # twice as large
    assert window_around((0, 50, 20, 58), (100, 200), image_size=64) == (34, 0, 40, 40)  # the image ends
    assert window_around((40, 50, 42, 51), (100, 200), image_size=256) == (34, 25, 32, 32)  # magnified eight times
    assert window_around((10, 5, 190, 95), (100, 200), image_size=64) == (0, 0, 100, 200)
