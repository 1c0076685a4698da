"""From targets on a device to arrays that can be written, and what was lost on the way.

B images   N tokens   E target width
"""

import numpy as np
import torch
from torch import Tensor

from sami.cache.codec import TargetCodec

FAITHFUL = 0.999  # cosine that all channels in int8 should keep
Tensors = dict[str, Tensor]


def encode_and_measure(codec: TargetCodec, target: Tensor, counted: Tensor) -> tuple[Tensors, Tensors]:
    """What is stored of targets, and for each image sums over its tokens and what storing costs them.

    Args:
        target: [B, N, E], all of it is stored.
        counted: [B, N] bool, the tokens that the figures are about.
    """
    stored = codec.encode(target)
    counted = counted.to(target.device, non_blocking=True)
    decoded = torch.where(counted.unsqueeze(2), codec.decode(stored), 0)
    target = torch.where(counted.unsqueeze(2), target, 0)
    num_tokens = counted.sum(dim=1)  # [B]
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
