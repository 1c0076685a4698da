import pytest
import torch

from sami.ops.boxes import box_iou, box_to_mask, mask_to_box, window_around, xywh_to_xyxy, xyxy_to_xywh


def test_the_box_of_one_pixel_is_its_edges() -> None:
    masks = torch.zeros(2, 8, 9, dtype=torch.bool)
    masks[0, 5, 3] = True
    assert mask_to_box(masks).tolist() == [[3, 5, 4, 6], [0, 0, 0, 0]]


def test_box_is_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    masks = torch.rand(50, 13, 17, generator=torch.Generator().manual_seed(0)) < 0.02
    for mask, box in zip(masks, mask_to_box(masks), strict=True):
        theirs = coco.toBbox(coco.encode(mask.numpy().astype("uint8").copy(order="F")))
        assert xyxy_to_xywh(box).tolist() == theirs.tolist()


def test_conversions_and_filled_boxes_are_inverses() -> None:
    corners = torch.randint(0, 9, (4, 20, 2), generator=torch.Generator().manual_seed(1)).float()
    boxes = torch.cat([corners[0], corners[0] + corners[1] + 1], dim=-1)
    assert torch.equal(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)
    masks = box_to_mask(boxes, (30, 25))
    assert masks.shape == (20, 30, 25) and torch.equal(mask_to_box(masks), boxes)


def test_a_window_is_square_and_holds_its_box() -> None:
    rng = torch.Generator().manual_seed(3)
    for _ in range(300):
        H, W = torch.randint(20, 200, (2,), generator=rng).tolist()
        (x0, x1), (y0, y1) = (sorted((torch.rand(2, generator=rng) * side).tolist()) for side in (W, H))
        factor, *place = (torch.rand(3, generator=rng) * torch.tensor([2.0, 1, 1]) + torch.tensor([1.0, 0, 0])).tolist()
        window = window_around((x0, y0, x1, y1), (H, W), image_size=64, factor=factor, place=tuple(place))
        top, left, height, width = window
        assert min(window) >= 0 and top + height <= H and left + width <= W
        assert left - 0.51 <= x0 and x1 <= left + width + 0.51 and top - 0.51 <= y0 and y1 <= top + height + 0.51
        side = max(factor * max(x1 - x0, y1 - y0), 8)
        for length, whole in ((height, H), (width, W)):
            assert side <= length < side + 1 or length == whole < side + 1


def test_where_a_window_lies() -> None:
    middle = window_around((40, 50, 60, 58), (100, 200), image_size=64)
    assert middle == (34, 30, 40, 40)  # twice as large
    assert window_around((0, 50, 20, 58), (100, 200), image_size=64) == (34, 0, 40, 40)  # the photo ends
    assert window_around((40, 50, 42, 51), (100, 200), image_size=256) == (34, 25, 32, 32)  # magnified eight times
    ends = [window_around((40, 40, 60, 60), (100, 200), image_size=64, place=(p, 1 - p)) for p in (0.0, 1.0)]
    assert ends == [(20, 40, 40, 40), (40, 20, 40, 40)]
    assert window_around((10, 5, 190, 95), (100, 200), image_size=64) == (0, 0, 100, 200)


def test_iou_of_boxes_is_that_of_their_masks() -> None:
    rng = torch.Generator().manual_seed(2)
    corners = torch.randint(0, 12, (2, 2, 7, 2), generator=rng).float()
    boxes, others = (torch.cat([c[0], c[0] + c[1]], dim=-1) for c in corners)
    masks, other_masks = box_to_mask(boxes, (24, 24)), box_to_mask(others, (24, 24))
    for n in range(7):
        for m in range(7):
            union = (masks[n] | other_masks[m]).sum()
            expected = (masks[n] & other_masks[m]).sum() / union.clamp(min=1)
            assert box_iou(boxes, others)[n, m] == pytest.approx(float(expected))
