"""Features in one byte per number.

B images   N tokens   C channels
"""

import torch
from torch import Tensor

LARGEST = 127  # codes are symmetric, so that a code of 0 is the center


def quantize(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, C] -> codes int8 [B, N, C], center and scale float16 [B, C]: each image's channels by their own range.

    No number is clipped: the error of each is at most half a step, `scale / 2`. Codes are computed with the rounded
    center and scale that are stored, so a channel that hardly moves around a large number gets the steps that half
    precision has there, which are finer than what bfloat16 computes. What does not fit 16 bits comes out infinite.
    """
    features = features.float()
    low, high = features.amin(dim=1), features.amax(dim=1)  # [B, C]
    center = ((low + high) / 2).half()
    reach = torch.maximum(high - center.float(), center.float() - low)  # of the codes, on either side
    scale = (reach / LARGEST + 2**-24).half()  # never zero; rounded down by 2^-11 at most, which leaves codes <= 127.1
    codes = ((features - center.float().unsqueeze(1)) / scale.float().unsqueeze(1)).round()
    return codes.to(torch.int8), center, scale


def dequantize(codes: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    """[B, N, C], [B, C], [B, C] -> float32 [B, N, C]. Codes may be means of codes: the map is affine."""
    return torch.addcmul(center.float().unsqueeze(1), codes.float(), scale.float().unsqueeze(1))
