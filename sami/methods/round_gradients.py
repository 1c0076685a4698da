"""The gradient of a mean over iterations, one of them in memory at a time."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class KnownGradients(torch.autograd.Function):
    """`value` as it is, with these gradients for these tensors: `apply(value, gradients, *tensors)`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * known for known in ctx.gradients)


def mean_by_iterations(
    iterations: Iterable[Tensor], leaves: list[Tensor], tensors: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The mean of the first number of each iteration, whose backward pass is done, and all numbers of all of them.

    No iteration may need the graph of another: each one's is freed before the next begins.

    Args:
        iterations: [parts] each, computed when asked for.
        leaves: what they were computed from, and all require gradients.
        tensors: who gets the gradients: `leaves` themselves, or what they were detached from.

    Returns:
        The mean, and [iterations, parts] without gradients.
    """
    done: list[Tensor] = []
    total = [torch.zeros_like(leaf) for leaf in leaves]
    for parts in iterations:
        with torch.autocast(parts.device.type, enabled=False):  # a backward pass chooses no types of its own
            gradients = torch.autograd.grad(parts[0], leaves, materialize_grads=True)
        torch._foreach_add_(total, gradients)  # pyright: ignore[reportPrivateImportUsage]  # one kernel for all tensors
        done.append(parts.detach())
        del parts, gradients  # the graph, before the next one grows
    torch._foreach_div_(total, len(done))  # pyright: ignore[reportPrivateImportUsage]
    numbers = torch.stack(done)  # [iterations, parts]
    return KnownGradients.apply(numbers[:, 0].mean(), total, *tensors), numbers
