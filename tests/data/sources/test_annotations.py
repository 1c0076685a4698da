import numpy as np
import pytest
import torch
from masked_images import draw_masks, rle, uncompressed
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sami.data.decode import BrokenImage
from sami.data.sources.annotations import segmentation_counts
from sami.ops.rle import rle_to_mask

SIZE = (48, 64)
POLYGONS = [
    [[10.5, 5.0, 40.0, 9.5, 22.25, 40.0]],
    [[0.0, 0.0, 63.9, 0.0, 63.9, 47.9, 0.0, 47.9]],
    [[-5.0, -5.0, 20.0, 10.0, 10.0, 30.0], [15.0, 15.0, 70.0, 20.0, 40.0, 60.0]],  # two that overlap, beyond the edges
    [[30.0, 10.0, 30.0, 10.0, 30.0, 10.0]],
]


def theirs(segmentation: object, crowd: int) -> np.ndarray:
    """COCO.annToMask."""
    coco = COCO()
    coco.imgs = {1: {"height": SIZE[0], "width": SIZE[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation, "iscrowd": crowd}).astype(bool)


@pytest.mark.parametrize("polygons", POLYGONS)
def test_polygons_are_drawn_as_pycocotools_does(polygons) -> None:
    mask = rle_to_mask(segmentation_counts(polygons, SIZE), SIZE)
    assert np.array_equal(mask.numpy(), theirs(polygons, 0))


def test_both_codes_and_crowds_are_read_as_pycocotools_does() -> None:
    for mask in draw_masks(0, 5):
        for code in (rle(mask), {"size": list(SIZE), "counts": uncompressed(mask)}):
            counts = segmentation_counts(code, SIZE)
            assert np.array_equal(rle_to_mask(counts, SIZE).numpy(), mask)
            assert np.array_equal(theirs(code, 1), mask)
        code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))  # bytes, as pycocotools gives it
        assert torch.equal(segmentation_counts(code, SIZE), counts)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [48, 60], "counts": [48 * 60]}, "a mask of 48x60 in an image of 48x64"),
        ({"size": [48, 64], "counts": [5, 5]}, "runs of 10 pixels in a mask of 48x64"),
        ({"size": [48, 64], "counts": [-5, 48 * 64 + 5]}, "whole numbers, 0 or more"),
        ({"size": [48, 64], "counts": [0.5, 48 * 64 - 0.5]}, "whole numbers, 0 or more"),
        ({"size": [48, 64], "counts": "hello world"}, "a mask cannot be read"),
        ({"size": [48, 64], "counts": None}, "a mask cannot be read"),
        ({"size": None, "counts": "1"}, "a mask cannot be read"),
        ({}, "a mask cannot be read"),
        (None, "a mask cannot be read"),
        ([], "a mask cannot be read|runs of"),
        (["what"], "a mask cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_broken_image(segmentation, message) -> None:
    with pytest.raises(BrokenImage, match=message):
        segmentation_counts(segmentation, SIZE)
