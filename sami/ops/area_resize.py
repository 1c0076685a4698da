"""Area resizing of feature maps from one grid to another, fractions of cells included.

B images   C channels   h w grid given   gh gw grid asked for
"""

import torch
from torch import Tensor


def area_resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] -> [B, C, gh, gw]: each new cell is the mean of the area it covers, fractions of cells included.

    What `adaptive_avg_pool2d` gives for whole ratios only: for 64 -> 14 its windows overlap, so that some cells
    count twice. Here every cell of the map counts once, and the mean of the map is preserved.
    """
    h, w = features.shape[-2:]
    if (h, w) == tuple(size):
        return features
    rows = overlap_weights(h, size[0], device=features.device)  # [gh, h]
    columns = overlap_weights(w, size[1], device=features.device)  # [gw, w]
    with torch.autocast(features.device.type, enabled=False):  # in half precision the weights would not add up to 1
        return (rows @ features.float() @ columns.T).to(features.dtype)


def overlap_weights(given: int, wanted: int, *, device: torch.device | None = None) -> Tensor:
    """[wanted, given] float32: which fraction of new cell i lies in old cell j; rows add up to 1."""
    # In units of 1 / (given * wanted) of the side all edges are integers, so the overlaps are exact.
    new = torch.arange(wanted, device=device).unsqueeze(1) * given
    old = torch.arange(given, device=device) * wanted
    overlap = torch.minimum(new + given, old + wanted) - torch.maximum(new, old)
    return overlap.clamp(min=0).float() / given


def area_crop(features: Tensor, regions: Tensor, size: tuple[int, int], flip: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, C, gh, gw]: each map's region on a new grid; a new cell is the mean of the area it covers.

    Args:
        features: maps, of any number type; the result is float32.
        regions: [B, 4] (top, left, bottom, right) in cells of the map, fractions included.
        size: (gh, gw).
        flip: [B] bool, mirrors left and right.
    """
    h, w = features.shape[-2:]
    top, left, bottom, right = regions.float().unbind(1)
    rows = interval_weights(top, bottom, h, size[0])  # [B, gh, h]
    columns = interval_weights(left, right, w, size[1])  # [B, gw, w]
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    with torch.autocast(features.device.type, enabled=False):
        C = features.shape[1]
        bands = rows @ features.float().transpose(1, 2).flatten(2)  # [B, gh, C * w]
        cells = bands.unflatten(2, (C, w)).flatten(1, 2) @ columns.transpose(1, 2)  # [B, gh * C, gw]
        return cells.unflatten(1, (size[0], C)).transpose(1, 2)


def interval_weights(start: Tensor, end: Tensor, given: int, wanted: int) -> Tensor:
    """[B, wanted, given]: which fraction of the i-th part of start..end lies in old cell j; rows add up to 1."""
    step = torch.arange(wanted + 1, device=start.device) / wanted
    edges = start[:, None] + (end - start)[:, None] * step  # [B, wanted + 1]
    edges = edges.unsqueeze(2)
    cells = torch.arange(given, device=start.device)
    overlap = (torch.minimum(edges[:, 1:], cells + 1) - torch.maximum(edges[:, :-1], cells)).clamp(min=0)
    return overlap / overlap.sum(dim=2, keepdim=True)
