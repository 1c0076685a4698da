"""Bounding boxes of masks.

A box is (x0, y0, x1, y1), its edges in pixels: that of the single pixel in column 3, row 5 is (3, 5, 4, 6), as COCO's.
"""

import torch
from torch import Tensor


def mask_to_box(masks: Tensor) -> Tensor:
    """[..., H, W] bool -> [..., 4] float, the tightest box around each mask; four zeros around an empty one."""
    edges = []
    for axis in (-2, -1):  # over rows for x, over columns for y
        touched = masks.any(dim=axis).int()  # [..., W], then [..., H]
        edges.append((touched.argmax(dim=-1), touched.shape[-1] - touched.flip(-1).argmax(dim=-1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=-1).float() * masks.flatten(-2).any(dim=-1, keepdim=True)
