"""Products of matrices on a CPU by the faster of torch's two libraries.

torch hands fp32 products to MKL, which uses half of the width of AMD's processors: 95 GFLOP/s where oneDNN, which torch
has as well, reaches 220 (one core, AVX-512, torch 2.15). oneDNN's has no backward pass, so this is for inference.

n m rows   d width
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # torch.compile's own; absent where oneDNN is


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: [..., n, d], [m, d], [m] -> [..., n, m]."""
    if by_onednn(tokens, weight):
        return ONEDNN(tokens, weight, bias, "none", [], "")
    return F.linear(tokens, weight, bias)


def by_onednn(*tensors: Tensor) -> bool:
    """Whether `linear` takes the other library."""
    return (
        ONEDNN is not None
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not needs_gradient(*tensors)
        and not torch.jit.is_tracing()  # an exported graph has to name common operators
        and not torch.compiler.is_compiling()
    )


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
