"""A step of pretraining as MAE has it and as here, and what it holds in memory.

B images   N tokens   E target width
"""

import gc
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from sami.benchmark.reference_mae import PlainMAE
from sami.benchmark.timing import Machine, count_flops
from sami.losses import feature_loss
from sami.methods.optimizer import parameter_groups
from sami.models.sami import SAMI, CrossAttentionDecoder
from sami.models.vit import ViT
from sami.ops.cpu_kernels import fastest_attention
from sami.ops.masking import split_by_noise

DESIGNS = ("MAE's design", "ours, context all", "ours, context encoder")


@dataclass(frozen=True)
class Setting(Machine):
    """What every row of a table has in common."""

    size: str  # of the student, see `sami.models.vit.SIZES`
    batch_size: int  # B
    image_size: int  # pixels per side
    mask_ratio: float  # fraction hidden
    target_width: int  # E; all designs predict as many channels

    def images(self) -> Tensor:
        """[B, 3, H, W] noise, normalised as images are."""
        return torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=self.device)


class StudentStep:
    """One optimiser step of a design: forward, mean squared error on all tokens, backward, fused AdamW."""

    def __init__(self, setting: Setting, design: str) -> None:
        self.setting = setting
        if design == "MAE's design":
            network: nn.Module = PlainMAE(setting.size, setting.image_size, setting.target_width)
        else:
            decoder = partial(CrossAttentionDecoder, context=design.rpartition(" ")[2])
            network = SAMI(ViT(setting.size, image_size=setting.image_size), decoder, setting.target_width)
        self.network = network.to(setting.device)
        self.optimizer = AdamW(parameter_groups(self.network, lr=1e-4, weight_decay=0.05), fused=True)

    def __call__(self, image: Tensor, target: Tensor) -> None:
        """[B, 3, H, W], [B, N, E]."""
        self.gradients(image, target)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self, image: Tensor, target: Tensor) -> None:
        """Forward and backward."""
        split = split_by_noise(torch.rand(target.shape[:2], device=image.device), self.setting.mask_ratio)
        with self.setting.autocast(), fastest_attention(self.setting.device):
            prediction = self.network(image, split)  # [B, N, E]
        feature_loss(prediction, target, split, distance="mse", tokens="all").backward()

    def count_flops(self, image: Tensor, target: Tensor) -> int:
        """Matrix products, convolution and attention of forward and backward, two operations per multiply-add.

        As torch counts: with the scores that fused attention computes a second time in its backward pass.
        """
        flops = count_flops(lambda: self.gradients(image, target))
        self.optimizer.zero_grad()
        return flops


def measure_memory(setting: Setting, design: str, num_steps: int) -> tuple[int, int]:
    """Peak bytes of a training that starts here, after step 2 and after `num_steps` more. Equal: nothing piles up.

    On a GPU the peak of what torch allocated. On a CPU the growth of the peak resident memory of a process of its
    own, since a process cannot forget its peak.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(memory_of_steps, setting, design, num_steps).result()


def memory_of_steps(setting: Setting, design: str, num_steps: int) -> tuple[int, int]:
    """See `measure_memory`; to be called once per process."""
    torch.set_num_threads(setting.threads)
    warm_up = torch.nn.Linear(8, 8)(torch.zeros(8, 8))  # torch's own start is not the step's
    warm_up.sum().backward()
    before = peak_bytes(setting.device)
    step = StudentStep(setting, design)
    image = setting.images()
    num_tokens = (setting.image_size // 16) ** 2
    target = torch.randn(setting.batch_size, num_tokens, setting.target_width, device=setting.device)
    peaks = []
    for steps in (2, num_steps):
        for _ in range(steps):
            step(image, target)
        gc.collect()
        peaks.append(peak_bytes(setting.device) - before)
    return peaks[0], peaks[1]


def peak_bytes(device: str) -> int:
    """The most that was held so far: by torch on a GPU, by the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
