"""Steps of a method without a trainer."""

import torch
from torch import Tensor

from sami.methods.base import Method


def losses_while_learning(method: Method, batch: dict[str, Tensor], *, steps: int, lr: float) -> list[float]:
    """The losses of one batch, again and again."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = method.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses
