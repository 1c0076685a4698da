"""Which of torch's attention kernels to train with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def fastest_attention(device: str) -> Iterator[None]:
    """Fused attention inside, but for training in bf16 autocast on a CPU.

    There the backward pass of the fused kernel takes 95 ms where plain matrix products take 12 (147 x 197 tokens, 16
    heads, batch 16, one AVX-512 core, torch 2.15), and a whole step of ViT-Tiny 1.4 times as long.
    """
    if device == "cpu" and torch.is_autocast_enabled("cpu"):
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
