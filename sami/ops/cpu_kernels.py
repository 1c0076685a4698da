"""Faster inference on a CPU: matrix products by oneDNN, attention row by row, and memory that is kept.

torch hands fp32 products to MKL, which uses half of the width of AMD's processors: 95 GFLOP/s where oneDNN, which torch
has as well, reaches 220 (one core, AVX-512, torch 2.15). None of this has a backward pass, and an exported or compiled
graph has to name common operators: everywhere else torch's own functions are called.

B images   N tokens   d width of a head   n m rows
"""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # torch.compile's own; absent where oneDNN is
ROWS = 128  # of 4,096 scores in fp32: 2 MB
SAFE_POWER = 100.0  # a sum of thousands of 2**100 is finite, and one of 2**-100 is not zero, in fp32 and bf16


def infers_on_cpu(*tensors: Tensor) -> bool:
    """Whether no backward pass can come, nothing records the operations, and all are on a CPU in fp32 or bf16."""
    return (
        all(tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] # torch.jit has no __all__
        and not torch.compiler.is_compiling()
    )


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: [..., n, d], [m, d], [m] -> [..., n, m]."""
    if ONEDNN is not None and by_onednn(tokens, weight):
        return ONEDNN(tokens, weight, bias, "none", [], "")
    return F.linear(tokens, weight, bias)


def by_onednn(tokens: Tensor, weight: Tensor) -> bool:
    """Whether `linear` takes oneDNN: for inference in fp32."""
    fp32 = tokens.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return fp32 and infers_on_cpu(tokens, weight)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention, [B, heads, N, d] each -> [B, heads, N, d], by the fastest way there is.

    That is torch's fused kernel, but for inference on a CPU. Milliseconds for 3 heads of 4,096 tokens there (one core
    with AVX-512 and its bf16 instructions, torch 2.15): fused 153 in fp32 and 192 in bf16, matrix product, softmax,
    matrix product 201 and 91, `attend_by_rows` 80 and 55.
    """
    if infers_on_cpu(queries, keys, values):
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


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks instead of handing them back to the system. Elsewhere: nothing.

    Training on a CPU allocates the same large tensors every step, and getting each of them zeroed by the system again
    costs more than some of the work done in them: the HOG target takes a fifth of the time with this, a step 0.95.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and not torch.cuda.is_available():
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)
