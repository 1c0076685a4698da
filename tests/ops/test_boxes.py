import pytest
import torch

from sami.ops.boxes import box_iou, box_to_mask, mask_to_box, xywh_to_xyxy, xyxy_to_xywh


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
