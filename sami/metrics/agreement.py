"""Cosine similarity and explained variance of predicted features, comparable between teachers.

B images   N tokens   E target width
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - squared error / variance of the target around its mean per channel: 0 for that mean, 1 for perfect."""
    target = target.float()
    error = (prediction.float() - target).square().sum()
    return 1 - error / (target - target.mean(dim=(0, 1))).square().sum().clamp_min(1e-12)


class FeatureAgreement(Metric):
    """Mean cosine similarity of tokens and explained variance, over everything seen on all ranks."""

    full_state_update = False
    cosine: Tensor
    error: Tensor
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, shape in (("cosine", ()), ("error", ()), ("count", ()), ("total", (width,)), ("squares", (width,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """[B, N, E] each."""
        prediction, target = prediction.flatten(0, 1).double(), target.flatten(0, 1).double()  # [B*N, E]
        self.cosine += F.cosine_similarity(prediction, target, dim=-1).sum()
        self.error += (prediction - target).square().sum()
        self.count += len(target)
        self.total += target.sum(dim=0)
        self.squares += target.square().sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """`cosine` and `explained_variance`."""
        spread = (self.squares - self.total.square() / self.count).sum().clamp_min(1e-12)
        return {"cosine": self.cosine / self.count, "explained_variance": 1 - self.error / spread}
