"""Normalised pixels (MAE) and HOG (MaskFeat) as targets: teachers without weights.

B images   H W pixels   p patch size   gh gw token grid, N = gh*gw   E target width
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sami.models.teachers import Teacher
from sami.ops.masking import patchify


class PixelTeacher(Teacher):
    """MAE's target (arXiv:2111.06377, Sec. 3: "normalized pixels"): E = 3*p*p, flattened as `patchify` does.

    Each patch less its own mean, divided by its own standard deviation: the unbiased variance plus 1e-6 under the
    root, as in MAE's released code. The image is taken as normalised by the data pipeline, which the per-patch
    variance sees as three channels of about equal spread.
    """

    def __init__(self, patch_size: int = 16) -> None:
        super().__init__(patch_size)
        self.width = 3 * patch_size**2

    def target(self, image: Tensor) -> Tensor:
        patches = patchify(image.float(), self.patch_size)  # [B, N, 3*p*p]
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


class HogTeacher(Teacher):
    """MaskFeat's target (arXiv:2112.09133): histograms of oriented gradients of each colour channel.

    Gradients by centred differences (rows and columns reflected at the border), orientations without sign in
    `num_bins` bins over 180 degrees, votes weighted by gradient magnitude, one histogram per channel and cell,
    each of length 1 (0 where the cell is flat). A token is the cells of its patch: [cell row, cell column, channel,
    bin], flattened, E = (p / cell_size)^2 * 3 * num_bins.

    A histogram of length 1 does not change when its channel is scaled or shifted, so the normalised image gives what
    raw pixels give.

    Departures from MaskFeat's released code: a vote is shared linearly between the two nearest bins, where theirs
    falls into one, so that the target does not jump when an edge turns by a degree; gradients are plain centred
    differences, theirs are Sobel's.

    Args:
        num_bins: orientation bins over 180 degrees; bin b is centred at (b + 0.5) * 180 / num_bins degrees of the
            gradient's direction, x to the right, y downwards.
        cell_size: pixels per side of a cell.

    Raises:
        ValueError: `patch_size` is not a multiple of `cell_size`.
    """

    def __init__(self, patch_size: int = 16, num_bins: int = 9, cell_size: int = 8) -> None:
        super().__init__(patch_size)
        if patch_size % cell_size:
            raise ValueError(f"patch_size={patch_size} is not a whole number of cells of cell_size={cell_size} pixels")
        self.num_bins, self.cell_size = num_bins, cell_size
        self.width = (patch_size // cell_size) ** 2 * 3 * num_bins

    def target(self, image: Tensor) -> Tensor:
        cells = oriented_histograms(image.float(), self.num_bins, self.cell_size)  # [B, 3, H/cell, W/cell, bins]
        cells = F.normalize(cells, dim=-1, eps=1e-6)
        B, C, rows, columns, bins = cells.shape
        side = self.patch_size // self.cell_size
        cells = cells.reshape(B, C, rows // side, side, columns // side, side, bins)
        return cells.permute(0, 2, 4, 3, 5, 1, 6).reshape(B, -1, self.width)  # [B, gh, gw, row, column, C, bins]


def oriented_histograms(image: Tensor, num_bins: int, cell_size: int) -> Tensor:
    """[B, C, H, W] -> [B, C, H/cell, W/cell, bins]: sums of gradient magnitudes by orientation, for each cell."""
    B, C, H, W = image.shape
    rows, columns = H // cell_size, W // cell_size
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    magnitude = torch.hypot(dx, dy)
    position = torch.atan2(dy, dx) * (num_bins / math.pi) - 0.5  # in bins, [-num_bins - 0.5, num_bins - 0.5]
    lower = position.floor()
    to_upper = magnitude * (position - lower)  # the part of each vote that goes to the bin above
    to_lower = magnitude - to_upper

    # Votes are added straight into [cell, bin]: one image-sized map per bin would cost num_bins times the image. Bins
    # run over 360 degrees until the end, which spares a remainder for each pixel.
    K = 2 * num_bins + 2
    row, column = (torch.arange(side, device=image.device) // cell_size for side in (H, W))
    cell = (row.unsqueeze(1) * columns + column) * K + num_bins + 1  # [H, W]
    index = (cell + lower).long().flatten(2)  # [B, C, H*W], exact in float32 up to 16 million bins
    votes = image.new_zeros(2, B, C, rows * columns * K)
    below = votes[0].scatter_add_(2, index, to_lower.flatten(2)).unflatten(2, (rows, columns, K))
    above = votes[1].scatter_add_(2, index, to_upper.flatten(2)).unflatten(2, (rows, columns, K))
    full = below + above.roll(1, dims=-1)  # [B, C, H/cell, W/cell, K], the last bin of `above` is always empty
    histograms = full[..., 1 : num_bins + 1] + full[..., num_bins + 1 : -1]
    histograms[..., -1] += full[..., 0]
    histograms[..., 0] += full[..., -1]
    return histograms
