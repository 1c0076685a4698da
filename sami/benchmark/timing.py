"""Stages timed in turns, so that ratios hold on a busy machine, and the operations they compute."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from sami.clock import measure_seconds
from sami.ops.cpu_kernels import ONEDNN


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes.

    Raises:
        ValueError: unknown `precision` or `device`.
    """

    precision: str  # "32", or "bf16" for autocast
    device: str  # cpu or cuda
    threads: int  # of the CPU

    def __post_init__(self) -> None:
        if self.precision not in ("32", "bf16"):
            raise ValueError(f"precision={self.precision}: choose 32 or bf16")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device}: choose auto, cpu or cuda")

    @property
    def name(self) -> str:
        """For a headline."""
        return torch.cuda.get_device_name() if self.device == "cuda" else f"CPU, {self.threads} threads"

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix multiplications."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> torch.autocast:
        """The mixed precision of forward passes; does nothing at 32 bits."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


class MatrixProduct:
    """One product of two large square matrices: the rate that a step is measured against."""

    def __init__(self, setting: Machine) -> None:
        side = 8192 if setting.device == "cuda" else 2048  # enough to fill the machine, and no more
        self.a, self.b = torch.randn(2, side, side, device=setting.device, dtype=setting.dtype)
        self.flops = 2 * side**3

    def __call__(self) -> None:
        torch.mm(self.a, self.b)


def interleave(stages: dict[str, Callable[[], object]], repetitions: int, device: str) -> dict[str, list[float]]:
    """The seconds of each stage, once per repetition; round by round, so that all see the same load.

    Every stage runs twice before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for repetition in range(-2, repetitions):
        for name, run in stages.items():
            elapsed = measure_seconds(run, device)
            if repetition >= 0:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over repetitions of above / below, each pair from one repetition."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def count_flops(stage: Callable[[], object]) -> int:
    """Matrix products, convolutions and attention of one call, two operations per multiply-add."""
    linear_too = {} if ONEDNN is None else {ONEDNN: linear_flops}
    with FlopCounterMode(display=False, custom_mapping=linear_too) as counter:
        stage()
    return counter.get_total_flops()


def linear_flops(tokens: Sequence[int], weight: Sequence[int], *rest: object, **options: object) -> int:
    """Of `sami.ops.cpu_kernels.linear`, from the shapes of its arguments."""
    return 2 * math.prod(tokens) * weight[0]
