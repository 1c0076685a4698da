"""Boxes: from masks, to masks, from one convention to the other, and how much they overlap.

A box is (x0, y0, x1, y1), its edges in pixels: that of the single pixel in column 3, row 5 is (3, 5, 4, 6), as COCO's.

H W pixels   N M boxes
"""

import torch
from torch import Tensor


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) -> [..., 4] (x0, y0, width, height)."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """[..., 4] (x0, y0, width, height) -> [..., 4] (x0, y0, x1, y1)."""
    return torch.cat([boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]], dim=-1)


def mask_to_box(masks: Tensor) -> Tensor:
    """[..., H, W] bool -> [..., 4] float, the tightest box around each mask; four zeros around an empty one."""
    edges = []
    for axis in (-2, -1):  # over rows for x, over columns for y
        touched = masks.any(dim=axis).int()  # [..., W], then [..., H]
        edges.append((touched.argmax(dim=-1), touched.shape[-1] - touched.flip(-1).argmax(dim=-1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=-1).float() * masks.flatten(-2).any(dim=-1, keepdim=True)


def box_to_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., 4] -> [..., H, W] bool: the pixels whose centre lies inside the box."""
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    x0, y0, x1, y1 = boxes.unbind(-1)
    columns = (x >= x0[..., None]) & (x < x1[..., None])  # [..., W]
    rows = (y >= y0[..., None]) & (y < y1[..., None])  # [..., H]
    return rows[..., :, None] & columns[..., None, :]


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """[..., N, 4], [..., M, 4] -> [..., N, M]: intersection over union; 0 where both boxes are empty."""
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)  # [..., N, M]
    union = sum((b[..., 2:] - b[..., :2]).clamp(min=0).prod(dim=-1) for b in (boxes, others)) - overlap
    return overlap / torch.where(union > 0, union, 1)
