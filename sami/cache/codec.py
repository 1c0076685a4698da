"""Quantisation of targets: 32, 16 or 8 bits, all channels or principal components, and what is lost on the way.

B images   N tokens   E target width   C stored channels
"""

import numpy as np
import torch
from torch import Tensor, nn

from sami.ops.area_resize import area_crop

STORAGES = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes per number
LARGEST = 127  # codes are symmetric, so that a code of 0 is the center
FAITHFUL = 0.999  # cosine that all channels in int8 should keep
Tensors = dict[str, Tensor]


class TargetCodec(nn.Module):
    """Targets to what is stored of them, and back.

    Args:
        storage: fp32, fp16, or int8 with a center and scale for each channel of each image.
        width: E.
        basis: mean [E] and components [E, C] of `fit_pca`; None stores all channels as they are.

    Raises:
        ValueError: unknown `storage`.
    """

    mean: Tensor | None
    components: Tensor | None

    def __init__(self, storage: str, width: int, basis: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        if storage not in STORAGES:
            raise ValueError(f"storage={storage!r}: choose {', '.join(STORAGES)}")
        self.storage, self.width = storage, width
        mean, components = basis or (None, None)
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    @property
    def channels(self) -> int:
        """C."""
        return self.width if self.components is None else self.components.shape[1]

    def encode(self, target: Tensor) -> Tensors:
        """[B, N, E] -> values [B, N, C] and, for int8, center and scale [B, C]."""
        with torch.autocast(target.device.type, enabled=False):
            target = target.float()
            if self.mean is not None and self.components is not None:
                target = (target - self.mean) @ self.components
            if self.storage != "int8":
                return {"values": target.half() if self.storage == "fp16" else target}
            codes, center, scale = quantize(target)
            return {"values": codes, "center": center, "scale": scale}

    def decode(self, stored: Tensors) -> Tensor:
        """What `encode` gave -> float32 [B, N, E]."""
        values = stored["values"]
        with torch.autocast(values.device.type, enabled=False):
            if self.storage == "int8":
                values = dequantize(values, stored["center"], stored["scale"])
            if self.mean is None or self.components is None:
                return values.float()
            return values.float() @ self.components.T + self.mean

    def decode_crop(
        self, stored: Tensors, regions: Tensor, flip: Tensor, *, given: tuple[int, int], wanted: tuple[int, int]
    ) -> Tensor:
        """What `encode` gave of whole maps -> float32 [B, wanted tokens, E], one region of each map.

        Decoding is affine in each channel, so the mean over an area is taken first, of the fewest numbers.

        Args:
            stored: values [B, N, C], N tokens of a grid of `given` (h, w), and, for int8, center and scale.
            regions, flip: [B, 4] and [B], see `area_crop`.
            wanted: (gh, gw).
        """
        maps = stored["values"].transpose(1, 2).unflatten(2, given)  # [B, C, h, w]
        values = area_crop(maps, regions, wanted, flip).flatten(2).transpose(1, 2)  # [B, gh * gw, C]
        return self.decode({**stored, "values": values})


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


def encode_and_measure(codec: TargetCodec, target: Tensor, token_valid: Tensor) -> tuple[Tensors, Tensors]:
    """What is stored of targets, and for each image sums over its tokens and what storing costs them.

    Args:
        target: [B, N, E], all of it is stored.
        token_valid: [B, N] bool, the tokens that the figures are about.
    """
    stored = codec.encode(target)
    token_valid = token_valid.to(target.device, non_blocking=True)
    decoded = torch.where(token_valid.unsqueeze(2), codec.decode(stored), 0)
    target = torch.where(token_valid.unsqueeze(2), target, 0)
    num_tokens = token_valid.sum(dim=1)  # [B]
    cosine = torch.cosine_similarity(decoded, target, dim=2).sum(dim=1, dtype=torch.float64)  # [B]
    squared_error = (decoded - target).square().sum(dim=(1, 2), dtype=torch.float64)
    squares = target.square().sum(dim=1, dtype=torch.float64)  # [B, E]
    figures = {
        "cosine": cosine / num_tokens.clamp_min(1),
        "relative_error": (squared_error / squares.sum(dim=1).clamp_min(1e-30)).sqrt(),
        "squared_error": squared_error,
        "sum": target.sum(dim=1, dtype=torch.float64),
        "sum_of_squares": squares,
        "tokens": num_tokens,
        "views": (num_tokens > 0).long(),
    }
    return stored, figures


def to_host(tensors: Tensors, device: torch.device) -> tuple[Tensors, torch.cuda.Event | None]:
    """Copies on the CPU that are complete once the event is; a GPU goes on with what comes next meanwhile."""
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    if device.type != "cuda":
        return copies, None
    event = torch.cuda.Event()
    event.record()
    return copies, event


def arrive(copies: Tensors, event: torch.cuda.Event | None) -> dict[str, np.ndarray]:
    """What `to_host` copied, once it is there."""
    if event is not None:
        event.synchronize()
    return {name: tensor.numpy() for name, tensor in copies.items()}
