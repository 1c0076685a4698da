"""Random masking of patch tokens as in MAE: split into visible and masked ones, merged back; patchify.

B images   N tokens   V visible   M masked, V + M = N   D width   p patch size   gh gw token grid, N = gh*gw
"""

from typing import NamedTuple

import torch
from torch import Tensor


class MaskSplit(NamedTuple):
    """The tokens of each image divided into visible and masked ones.

    Index tensors have no polarity to get wrong: what is kept is listed, and so is what is hidden.
    """

    ids_keep: Tensor  # [B, V] int64, positions in image order of the visible tokens
    ids_mask: Tensor  # [B, M] int64, positions in image order of the masked tokens
    ids_restore: Tensor  # [B, N] int64, cat(visible, masked)[ids_restore] is image order


def num_visible_tokens(num_tokens: int, mask_ratio: float) -> int:
    """How many of `num_tokens` stay visible, rounded down as MAE does (196 at 0.75: 49).

    Raises:
        ValueError: `mask_ratio` is outside [0, 1), or keeps no token.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} is the hidden fraction of tokens: give a number in [0, 1)")
    num_keep = int(num_tokens * (1 - mask_ratio))
    if num_keep == 0:
        raise ValueError(f"mask_ratio={mask_ratio} keeps 0 of {num_tokens} tokens: lower it, or use larger images")
    return num_keep


def split_by_noise(noise: Tensor, mask_ratio: float) -> MaskSplit:
    """The tokens with the lowest noise stay visible, in order of their noise (MAE, arXiv:2111.06377).

    Args:
        noise: [B, N] one independent uniform number per token.
        mask_ratio: fraction hidden, see `num_visible_tokens`.
    """
    num_keep = num_visible_tokens(noise.shape[1], mask_ratio)
    ids_shuffle = noise.argsort(dim=1, stable=True)  # [B, N], stable: equal numbers must not depend on the device
    ids_keep, ids_mask = ids_shuffle[:, :num_keep], ids_shuffle[:, num_keep:]
    return MaskSplit(ids_keep, ids_mask, ids_restore=ids_shuffle.argsort(dim=1))


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """[B, N, D], [B, V] -> [B, V, D]: the tokens at these positions."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def merge_tokens(visible: Tensor, masked: Tensor, split: MaskSplit) -> Tensor:
    """[B, V, D], [B, M, D] -> [B, N, D] in image order (arXiv:2312.00863, Sec. 3.2: merge and re-order)."""
    return take_tokens(torch.cat([visible, masked], dim=1), split.ids_restore)


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, N, p*p*C]: patches in row-major image order, channels last within a patch, as in MAE."""
    B, C, H, W = image.shape
    p = patch_size
    if H % p or W % p:
        raise ValueError(f"an image of {H}x{W} pixels is not a whole number of {p}x{p} patches: use multiples of {p}")
    patches = image.reshape(B, C, H // p, p, W // p, p)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)
