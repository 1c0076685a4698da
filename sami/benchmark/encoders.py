"""The benchmark's table of image encoders: how long they take, how large they are, and what they compute."""

import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sami.benchmark.timing import Machine, count_flops, interleave
from sami.models.build import build_image_encoder
from sami.models.image_encoders.mobile import fuse_branches
from sami.ops.cpu_kernels import fastest_attention

ENCODERS = {  # row: name of `build_sam`, fused
    "ViT-Ti": ("efficient_sam_vitt", False),
    "ViT-S": ("efficient_sam_vits", False),
    "TinyViT-5M": ("mobile_sam", False),
    "TinyViT-5M, fused": ("mobile_sam", True),
    "RepViT-M2.3": ("repvit_sam", False),
    "RepViT-M2.3, fused": ("repvit_sam", True),
    "SAM ViT-B": ("sam_vit_b", False),
}


@dataclass(frozen=True)
class EncoderCost:
    """One row."""

    seconds: float  # of one image, the median
    parameters: int
    macs: int  # multiply-adds of matrix products, convolutions and attention


def measure_encoders(
    machine: Machine, *, image_size: int, repetitions: int, rows: tuple[str, ...] = tuple(ENCODERS)
) -> dict[str, EncoderCost]:
    """The costs of one image by row of `ENCODERS`, all timed in turns, weights random.

    Args:
        machine: what computes.
        image_size: pixels per side; SAM's own encoder takes 1024 only.
        repetitions: of each; two more run before.
        rows: which.

    Raises:
        ValueError: an unknown row, or SAM's encoder at another size.
    """
    if unknown := set(rows) - set(ENCODERS):
        raise ValueError(f"{', '.join(sorted(unknown))}: choose from {', '.join(ENCODERS)}")
    if image_size != 1024 and "SAM ViT-B" in rows:
        raise ValueError(f"image_size={image_size}: the position tables of SAM ViT-B are for 1024, leave it out")
    torch.set_num_threads(machine.threads)
    image = torch.randn(1, 3, image_size, image_size, device=machine.device)
    networks = {row: build_encoder(*ENCODERS[row]).to(machine.device) for row in rows}

    @torch.no_grad()
    def look(network: nn.Module) -> None:
        with fastest_attention(machine.device), machine.autocast():
            network(image)

    seconds = interleave(
        {row: partial(look, network) for row, network in networks.items()}, repetitions, machine.device
    )
    return {
        row: EncoderCost(
            statistics.median(seconds[row]),
            sum(parameter.numel() for parameter in network.parameters()),
            count_macs(network, image_size),
        )
        for row, network in networks.items()
    }


def build_encoder(name: str, fused: bool) -> nn.Module:
    """An image encoder with random weights, in evaluation mode."""
    encoder = build_image_encoder(name).eval()
    return fuse_branches(encoder) if fused else encoder


@torch.no_grad()
def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-adds of one image, in SAM's case by its own attention: ours computes more of them, in less time."""
    for module in network.modules():
        module.__dict__.pop("forward", None)
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    return count_flops(lambda: network(image)) // 2


def print_encoders(
    machine: Machine, *, image_size: int, repetitions: int, rows: tuple[str, ...] = tuple(ENCODERS)
) -> None:
    """The table of `measure_encoders`."""
    costs = measure_encoders(machine, image_size=image_size, repetitions=repetitions, rows=rows)
    print(f"{machine.name}, precision {machine.precision}, one image")
    print(f"{f'image encoder, {image_size} pixels':32}{'ms':>10}{'parameters':>14}{'GMAC':>10}")
    for row, cost in costs.items():
        print(f"{row:32}{1000 * cost.seconds:10,.1f}{cost.parameters / 1e6:13.2f}M{cost.macs / 1e9:10.2f}")
