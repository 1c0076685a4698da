"""Feature maps from one grid to another.

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
