"""Which attention kernel to use.

B images   N tokens   d width of a head
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ROWS = 128  # of 4,096 scores in bf16: 1 MB


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


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention, [B, heads, N, d] each -> [B, heads, N, d], by the fastest kernel there is.

    That is torch's fused one, but for inference in bf16 on a CPU: there it takes 192 ms for 3 heads of 4,096 tokens,
    plain matrix products 248, and matrix products of `ROWS` queries at a time, whose scores stay in the caches, 71
    (one AVX-512 core with bf16 instructions, torch 2.15).
    """
    differentiable = torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad or values.requires_grad)
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and not differentiable:
        return attend_by_rows(queries, keys, values)
    return F.scaled_dot_product_attention(queries, keys, values)


def attend_by_rows(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attend` without gradients, `ROWS` queries of one head at a time, in two buffers that are used again."""
    B, heads, N, d = queries.shape
    attended = queries.new_empty(B, heads, N, d)
    scores, weights = queries.new_empty(2, min(ROWS, N), keys.shape[2])
    queries = queries * d**-0.5  # less to multiply than the scores
    for image in range(B):
        for head in range(heads):
            transposed = keys[image, head].T.contiguous()  # [d, N]
            value = values[image, head].contiguous()
            for row in range(0, N, ROWS):
                query = queries[image, head, row : row + ROWS]
                score = torch.mm(query, transposed, out=scores[: len(query)])
                weight = torch.softmax(score, -1, out=weights[: len(query)])
                torch.mm(weight, value, out=attended[image, head, row : row + ROWS])
    return attended
