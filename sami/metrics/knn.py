"""k-NN accuracy on frozen features.

n images   D width   k neighbours
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def leave_one_out_knn(features: Tensor, labels: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """[n, D], [n] class numbers -> fraction of images whose class is the weighted vote of their k nearest others.

    Votes weigh exp(cosine / temperature), k and temperature as in arXiv:1805.01978. Leaving each image out of its
    own neighbours needs one labelled set only, where the usual protocol needs a labelled training set as well; so
    these numbers follow a run, and are not to be compared with published ones.

    Channels are brought to zero mean and unit variance over the set first, as MAE's linear probe does with a BatchNorm:
    nothing in masked pretraining makes their scales comparable, and a few loud ones would decide every neighbour.
    """
    deviation, mean = torch.std_mean(features.float(), dim=0)
    features = F.normalize((features.float() - mean) / deviation.clamp_min(1e-6), dim=1)
    k = min(k, len(features) - 1)
    correct = torch.zeros((), device=features.device)
    for start in range(0, len(features), 4096):  # a block of rows at a time: n x n would not fit for ImageNet's 50,000
        rows = torch.arange(start, min(start + 4096, len(features)), device=features.device)
        similarity = features[rows] @ features.T  # [block, n]
        similarity[rows - start, rows] = -torch.inf
        nearest, index = similarity.topk(k, dim=1)  # [block, k]
        votes = torch.zeros(len(rows), int(labels.max()) + 1, device=features.device)
        votes.scatter_add_(1, labels[index], (nearest / temperature).exp())
        correct += (votes.argmax(dim=1) == labels[rows]).sum()
    return correct / len(features)


class KNNAccuracy(Metric):
    """`leave_one_out_knn` over all ranks. NaN with fewer than two labelled images."""

    full_state_update = False
    features: Any  # lists of tensors, or one after a reduction
    labels: Any

    def __init__(self, k: int = 20) -> None:
        super().__init__()
        self.k = k
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """[B, D], [B]; images without label (negative) are left out."""
        self.features.append(features[labels >= 0].float())
        self.labels.append(labels[labels >= 0])

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]."""
        labels = dim_zero_cat(self.labels)
        if len(labels) < 2:
            return torch.tensor(torch.nan, device=labels.device)
        return leave_one_out_knn(dim_zero_cat(self.features), labels, k=self.k)
