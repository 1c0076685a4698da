"""Segmentations of COCO and SA-1B to run lengths: polygons, compressed and uncompressed RLE.

H W pixels   n runs
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from sami.data.decode import BrokenImage
from sami.ops.rle import check_counts, counts_from_string


def segmentation_counts(segmentation: Any, size: tuple[int, int]) -> Tensor:
    """[n] int64 run lengths of an annotation's `segmentation`, read as pycocotools reads it.

    Args:
        segmentation: {"size": [H, W], "counts": text or list of lengths}, or a list of polygons [x0, y0, x1, y1, ...],
            which are drawn by pycocotools itself and united.
        size: (H, W) of the image.

    Raises:
        BrokenImage: none of these, or a mask of another size than the image's.
    """
    try:
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        code, stated = segmentation["counts"], tuple(segmentation["size"])
        if stated != tuple(size):
            turned = " (is the image rotated by EXIF?)" if stated == tuple(size)[::-1] else ""
            raise BrokenImage(f"a mask of {stated[0]}x{stated[1]} in an image of {size[0]}x{size[1]}{turned}")
        counts = torch.tensor(code) if isinstance(code, list) else counts_from_string(code)
        if counts.ndim != 1 or counts.is_floating_point() or (len(counts) and counts.min() < 0):
            raise ValueError("run lengths have to be whole numbers, 0 or more")
        check_counts(counts, size)
    except BrokenImage:
        raise
    except Exception as error:  # pycocotools raises what its C code stumbles over, torch RuntimeError
        raise BrokenImage(f"a mask cannot be read ({type(error).__name__}: {error})") from error
    return counts


def code_size(segmentations: list[Any]) -> tuple[int, int] | None:
    """(H, W) that the first run-length code among an image's segmentations states; None where all are polygons."""
    sizes = (one["size"] for one in segmentations if isinstance(one, dict) and isinstance(one.get("size"), list))
    height, width = next((size for size in sizes if len(size) == 2), (0, 0))
    return (height, width) if height and width else None


def polygons_leave(segmentations: list[Any], size: tuple[int, int]) -> bool:
    """Whether a polygon reaches more than a pixel beyond an image of this (H, W)."""
    outlines = (outline for one in segmentations if isinstance(one, list) for outline in one)
    outlines = [np.asarray(outline).reshape(-1, 2) for outline in outlines if isinstance(outline, list) and outline]
    return any((outline.max(0) > (size[1] + 1, size[0] + 1)).any() for outline in outlines)
