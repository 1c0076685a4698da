"""Masks: resizing, IoU, distance transform, innermost pixel.

H W pixels   h w pixels of low-resolution masks
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sami.ops.boxes import mask_to_box


def enlarge(low_res_masks: Tensor, size: Sequence[int]) -> Tensor:
    """[..., h, w] -> [..., H, W], bilinear."""
    if low_res_masks.shape[-2:] == tuple(size):
        return low_res_masks
    flat = low_res_masks.reshape(1, -1, *low_res_masks.shape[-2:])
    enlarged = F.interpolate(flat, size=list(size), mode="bilinear", align_corners=False)
    return enlarged.reshape(*low_res_masks.shape[:-2], *size)


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """[..., H, W] bool twice -> [...] float: intersection over union, 1 for two empty masks."""
    overlap, union = (region.flatten(-2).sum(dim=-1, dtype=torch.int32) for region in (masks & others, masks | others))
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def squared_depth(masks: Tensor) -> Tensor:
    """[..., H, W] bool -> float: squared distance from each pixel of a mask to the nearest pixel outside, 0 outside.

    Exact, in pixels; beyond the image's edge is outside. Along columns first, then over all offsets along rows
    that could still be nearer, so the cost grows with the depth of the deepest mask.
    """
    H, W = masks.shape[-2:]
    row = torch.arange(H, device=masks.device, dtype=torch.float32).unsqueeze(1)  # [H, 1]
    above = torch.where(masks, -1.0, row).cummax(dim=-2).values
    below = torch.where(masks, float(H), row).flip(-2).cummin(dim=-2).values.flip(-2)
    column_depth = torch.minimum(row - above, below - row).square()  # [..., H, W]
    column = torch.arange(W, device=masks.device, dtype=torch.float32)
    depth = torch.minimum(column_depth, torch.minimum(column + 1, W - column).square())
    for offset in range(1, W):
        if offset % 8 == 1 and not (depth > offset**2).any():  # to look costs as much as an offset
            break
        near, far = depth[..., offset:], depth[..., :-offset]
        torch.minimum(near, column_depth[..., :-offset] + offset**2, out=near)
        torch.minimum(far, column_depth[..., offset:] + offset**2, out=far)
    return depth


def innermost_pixel(masks: Tensor) -> tuple[Tensor, Tensor]:
    """[..., H, W] bool -> [..., 2] (x, y) of the pixel farthest from the edge of each mask, [...] its distance.

    An empty mask gives the first pixel, at distance 0. Outside of its box a mask has no pixel, so that only the box is
    looked at: objects are small beside their images.
    """
    flat = masks.reshape(-1, *masks.shape[-2:])
    pixels, depths = flat.new_zeros(len(flat), 2, dtype=torch.float32), flat.new_zeros(len(flat), dtype=torch.float32)
    for number, (x0, y0, x1, y1) in enumerate(mask_to_box(flat).long().tolist()):
        x1, y1 = max(x1, 1), max(y1, 1)  # an empty mask has an empty box
        depths[number], index = squared_depth(flat[number, y0:y1, x0:x1]).flatten().max(dim=0)
        pixels[number] = torch.stack([x0 + index % (x1 - x0), y0 + index // (x1 - x0)])
    return pixels.reshape(*masks.shape[:-2], 2), depths.sqrt().reshape(masks.shape[:-2])
