"""What annotation files write about a mask, as run lengths: COCO's polygons, compressed and uncompressed code.

H W pixels   n runs
"""

from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from sami.data.transforms import BrokenImage
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
            turned = " (is the photo rotated by EXIF?)" if stated == tuple(size)[::-1] else ""
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
