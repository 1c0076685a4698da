import pytest
import torch

from sami.ops.boxes import mask_to_box


def test_the_box_of_one_pixel_is_its_edges() -> None:
    masks = torch.zeros(2, 8, 9, dtype=torch.bool)
    masks[0, 5, 3] = True
    assert mask_to_box(masks).tolist() == [[3, 5, 4, 6], [0, 0, 0, 0]]


def test_box_is_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    masks = torch.rand(50, 13, 17, generator=torch.Generator().manual_seed(0)) < 0.02
    for mask, box in zip(masks, mask_to_box(masks), strict=True):
        theirs = coco.toBbox(coco.encode(mask.numpy().astype("uint8").copy(order="F")))
        x0, y0, x1, y1 = box.tolist()
        assert [x0, y0, x1 - x0, y1 - y0] == theirs.tolist()
