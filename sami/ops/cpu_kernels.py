"""Which attention kernel to use.

B images   N tokens   d width of a head
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sami.ops.products import linear, needs_gradient

ROWS = 128  # of 4,096 scores in fp32: 2 MB
SAFE_POWER = 100.0  # a sum of thousands of 2**100 is finite, and one of 2**-100 is not zero, in fp32 and bf16


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
    """Scaled dot-product attention, [B, heads, N, d] each -> [B, heads, N, d], by the fastest way there is.

    That is torch's fused kernel, but for inference on a CPU. Milliseconds for 3 heads of 4,096 tokens there (one core
    with AVX-512 and its bf16 instructions, torch 2.15): fused 153 in fp32 and 192 in bf16, matrix product, softmax,
    matrix product 201 and 91, `attend_by_rows` 80 and 55.
    """
    common = queries.dtype in (torch.float32, torch.bfloat16) and not torch.jit.is_tracing()
    if queries.device.type == "cpu" and common and not needs_gradient(queries, keys, values):
        return attend_by_rows(queries, keys, values)
    return F.scaled_dot_product_attention(queries, keys, values)


def attend_by_rows(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attend` without gradients, `ROWS` queries of one head at a time, whose scores stay in the caches.

    The largest score of a query is only looked for where its power of two could overflow without being divided by
    that of the largest.
    """
    B, heads, N, d = queries.shape
    attended = queries.new_empty(B, heads, N, d)
    queries = queries * (math.log2(math.e) * d**-0.5)  # less to multiply than the scores
    for image in range(B):
        for head in range(heads):
            key, value = keys[image, head].contiguous(), values[image, head].T.contiguous()  # [N, d], [d, N]
            longest = key.norm(dim=1).amax()
            for row in range(0, N, ROWS):
                query = queries[image, head, row : row + ROWS]
                scores = linear(query, key)  # [n, N], in powers of two
                if query.norm(dim=1).amax() * longest > SAFE_POWER:
                    scores -= scores.amax(dim=1, keepdim=True)
                weights = scores.exp2_()
                total = weights.sum(dim=1, keepdim=True)
                torch.div(linear(weights, value), total, out=attended[image, head, row : row + ROWS])
    return attended
