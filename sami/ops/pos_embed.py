"""Fixed 2-D sin-cos position embedding of a token grid.

gh gw token grid, N = gh*gw   D width   T leading tokens that have no place in the grid (the class token)
"""

import torch
from torch import Tensor


def sincos_pos_embed(grid_size: tuple[int, int], width: int, *, num_prefix_tokens: int = 0) -> Tensor:
    """[1, T + N, D] fixed 2-D sin-cos table, zeros for prefix tokens (the one MAE uses, arXiv:2111.06377).

    The first half of the channels encodes x, the second y; each half is sines, then cosines, at wavelengths
    from 2*pi to 10000*2*pi patches.
    """
    if width % 4:
        raise ValueError(f"width={width}: a 2-D sin-cos table needs a multiple of 4")
    frequency = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # [D/4]
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid_size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")  # [gh, gw] each
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]  # [N, D/4] each
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)  # [N, D]
    prefix = torch.zeros(num_prefix_tokens, width, dtype=table.dtype)
    return torch.cat([prefix, table]).float().unsqueeze(0)
