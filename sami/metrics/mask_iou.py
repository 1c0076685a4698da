"""Mean IoU of masks predicted from prompts, and of discs around clicks, the baseline without a model.

n objects   H W pixels   R radii
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class PromptedIoU(Metric):
    """mIoU by kind of prompt: the mean over objects, as arXiv:2304.02643, Sec. 7.1 has it, over all ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.add_state("total", torch.zeros(len(self.kinds), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ious: Mapping[str, Tensor]) -> None:
        """[n] for each kind."""
        measured = torch.stack([ious[kind].double() for kind in self.kinds])  # [kinds, n]
        self.total += measured.sum(dim=1)
        self.count += measured.shape[1]

    def compute(self) -> dict[str, Tensor]:
        """By kind; NaN without an object."""
        return dict(zip(self.kinds, self.total / self.count, strict=True))


class BestDiscIoU(Metric):
    """mIoU of a disc around the click, of the one radius that suits all objects best: what clicking alone is worth."""

    full_state_update = False
    total: Tensor
    count: Tensor
    radii = torch.logspace(-2, -0.2, 28)  # of the longer side: 1 % to 63 %, by a sixth each

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(self.radii), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, masks: Tensor, clicks: Tensor) -> None:
        """[n, H, W] bool, [n, 2] (x, y) of the pixel that is clicked.

        A disc covers a run of pixels in each row, and the mask's pixels of a run are a difference of two look-ups: far
        less work than to draw the discs.
        """
        H, W = masks.shape[-2:]
        radii = self.radii.to(masks.device) * max(H, W)
        rows = torch.arange(H, device=masks.device)
        drop = (rows - clicks[:, 1:]).unsqueeze(1)  # [n, 1, H]: from the click down to each row
        squared_reach = radii.square().unsqueeze(1) - drop.square()  # [n, R, H]; negative in rows that no disc touches
        reach, x = squared_reach.clamp(min=0).sqrt().floor(), clicks[:, :1].unsqueeze(1)
        first, last = (x - reach).clamp(0, W), (x + reach + 1).clamp(0, W)  # of each run, and the pixel behind it
        first, last = first.long(), torch.where(squared_reach < 0, first, last).long()
        ones = F.pad(masks.cumsum(dim=2, dtype=torch.int32), (1, 0)).transpose(1, 2)  # [n, W + 1, H] to the left
        hit = (ones.gather(1, last) - ones.gather(1, first)).sum(dim=2)  # [n, R]
        inside = (last - first).sum(dim=2)
        area = masks.flatten(1).sum(dim=1, keepdim=True)
        self.total += (hit / (area + inside - hit).clamp(min=1)).double().sum(0)
        self.count += len(masks)

    def compute(self) -> Tensor:
        """Of the best radius; NaN without an object."""
        return (self.total / self.count).max()
