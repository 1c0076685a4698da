"""How well masks are found from prompts, beside the answers that need no model.

B images   Q objects per image   H W pixels   R radii
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class PromptedIoU(Metric):
    """mIoU by kind of prompt: the mean over objects, as arXiv:2304.02643, Sec. 7.1 has it, over all ranks.

    Args:
        kinds: their names.
    """

    full_state_update = False

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.add_state("total", torch.zeros(len(self.kinds), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ious: Mapping[str, Tensor], valid: Tensor) -> None:
        """One [B, Q] for each kind; objects that are not `valid` ([B, Q] bool) count nothing."""
        self.total += torch.stack([ious[kind][valid].double().sum() for kind in self.kinds])
        self.count += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """By kind; NaN without an object."""
        return dict(zip(self.kinds, self.total / self.count, strict=True))


class BestDiscIoU(Metric):
    """mIoU of a disc around the click, of the one radius that suits all objects best: what clicking alone is worth."""

    full_state_update = False
    radii = torch.logspace(-2, -0.2, 28)  # of the longer side: 1 % to 63 %, by a sixth each

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(self.radii), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, masks: Tensor, clicks: Tensor, valid: Tensor) -> None:
        """[B, Q, H, W] bool, [B, Q, 2] (x, y) pixels, [B, Q] bool."""
        masks, clicks = masks[valid], clicks[valid]  # [n, H, W], [n, 2]
        H, W = masks.shape[-2:]
        y = torch.arange(H, device=masks.device) - clicks[:, 1:]  # [n, H]
        x = torch.arange(W, device=masks.device) - clicks[:, :1]  # [n, W]
        distance = torch.hypot(y.unsqueeze(2), x.unsqueeze(1)).flatten(1) / max(H, W)  # [n, H*W]
        ring = torch.bucketize(distance, self.radii.to(distance))  # the first radius that reaches the pixel
        zeros = torch.zeros(len(masks), len(self.radii) + 1, device=masks.device)
        inside = zeros.scatter_add(1, ring, torch.ones_like(distance)).cumsum(1)[:, :-1]  # [n, R] pixels of each disc
        hit = zeros.scatter_add(1, ring, masks.flatten(1).float()).cumsum(1)[:, :-1]
        area = masks.flatten(1).sum(1, keepdim=True)
        self.total += (hit / (area + inside - hit).clamp(min=1)).double().sum(0)
        self.count += len(masks)

    def compute(self) -> Tensor:
        """Of the best radius; NaN without an object."""
        return (self.total / self.count).max()
