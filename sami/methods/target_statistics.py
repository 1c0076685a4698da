"""Per-channel standardisation of targets.

N tokens   E target width
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sami.data.crops import normalize
from sami.data.square import content_cells

if TYPE_CHECKING:
    from sami.data.distillation import WholeImageData
    from sami.data.pretraining import PretrainingData
    from sami.models.teachers import Teacher


class ChannelStatistics(nn.Module):
    """(target - mean) / std per channel, with statistics that are measured once and travel in checkpoints.

    Args:
        width: E.
    """

    mean: Tensor
    std: Tensor
    num_tokens: Tensor
    num_images = 1024  # 200,000 tokens at 14x14: the standard error of a mean is 0.2 % of its channel's spread

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("num_tokens", torch.zeros((), dtype=torch.int64))

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, E] -> [B, N, E]."""
        return (target.float() - self.mean) / self.std

    @torch.no_grad()
    def measure(self, data: "PretrainingData", teacher: "Teacher", *, device: torch.device) -> None:
        """Those the teacher knows, or those of the first training views, shared among the ranks. Once only."""
        if self.num_tokens > 0:
            return
        if teacher.statistics is not None:
            self.set(*teacher.statistics)
            return
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        images = data.train_set()
        sums = torch.zeros(2 * len(self.mean) + 1, dtype=torch.float64, device=device)  # sum, sum of squares, count
        positions = list(range(min(self.num_images, data.epoch_size)))[rank::world_size]
        for start in range(0, len(positions), data.batch_size):
            batch = images.__getitems__(positions[start : start + data.batch_size])
            batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            tokens = self.tokens(data, teacher, batch).double()  # [n, E]
            count = torch.tensor([len(tokens)], dtype=torch.float64, device=device)
            sums += torch.cat([tokens.sum(0), tokens.square().sum(0), count])
        if world_size > 1:
            dist.all_reduce(sums)
        total, squares = sums[:-1].chunk(2)
        count = sums[-1]
        self.set(total / count, squares / count - (total / count).square(), int(count))

    def tokens(self, data: "PretrainingData", teacher: "Teacher", batch: dict[str, Tensor]) -> Tensor:
        """The teacher's tokens of a batch that count, [n, E]."""
        return teacher({**batch, "image": normalize(batch["image"])}).flatten(0, 1)

    def set(self, mean: Tensor, variance: Tensor, num_tokens: int) -> None:
        """Takes these statistics, [E] each."""
        self.mean.copy_(mean)
        self.std.copy_(variance.clamp_min(1e-8).sqrt())
        self.num_tokens.fill_(num_tokens)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A linear layer [E, D], [E] that predicts standardised features -> one that predicts them as they were."""
        return weight * self.std[:, None], bias * self.std + self.mean


class ContentStatistics(ChannelStatistics):
    """Those of whole images in a square: tokens of padding do not count."""

    def tokens(self, data: "WholeImageData", teacher: "Teacher", batch: dict[str, Tensor]) -> Tensor:
        target = teacher(data.on_after_batch_transfer(batch, 0))  # [B, N, E]
        side = batch["image"].shape[-1] // teacher.patch_size
        return target[content_cells(batch["input_size"], batch["image"].shape[-1], (side, side))]
