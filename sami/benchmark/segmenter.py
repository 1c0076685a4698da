"""The benchmark's tables of a segmenter: its image encoder and decoder beside the released design, weights shared.

On a CPU glibc is told to keep freed blocks (`keep_freed_memory`), so that computing is compared and not the time in
which the released design, which needs many large blocks, waits for pages.

Q prompts per image   S pixels per side
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from sami.benchmark.reference_sam import decode_tiled, plain_encoder
from sami.benchmark.timing import Machine, MatrixProduct, count_flops, interleave, median_ratio
from sami.models.build import build_sam
from sami.models.image_encoders.efficient_sam import EfficientSAMEncoder
from sami.models.sam import Sam
from sami.ops.cpu_kernels import keep_freed_memory, linear
from sami.ops.prompts import FOREGROUND

BESIDE = ("single calls", "clicks", "tiled")  # what one call of the decoder is compared with
Stages = dict[str, Callable[[], object]]


class Timing(NamedTuple):
    """Seconds of each stage, one a repetition, operations of some of them, and the machine's rate.

    "..., fp32" are stages of the released design without mixed precision.
    """

    seconds: dict[str, list[float]]
    flops: dict[str, int]
    rates: dict[str, float]  # operations per second of one large matrix product, by library


def measure(machine: Machine, models: list[str], image_size: int, num_prompts: int, repetitions: int) -> Timing:
    """Runs all stages in turns."""
    torch.manual_seed(0)
    torch.set_num_threads(machine.threads)
    stages: Stages = {}
    for name in models:
        sam = build_sam(name, decoder="sam", image_size=image_size).to(machine.device)
        own = encoder_stages(sam, image_size, machine.device)
        stages |= {f"{name} {stage}": call for stage, call in own.items()}
    decoder = decoder_stages(sam, num_prompts, machine.device)
    stages |= {name: decoder[name] for name in ("one call", *BESIDE)}
    with torch.no_grad():
        flops = {name: count_flops(call) for name, call in stages.items() if name.endswith("encoder")}
    mixed = {name: in_precision(call, machine) for name, call in stages.items()}
    if machine.precision != "32":
        mixed |= {
            f"{name}, fp32": call for name, call in stages.items() if name.endswith("released") or name == "tiled"
        }
    product = MatrixProduct(machine)
    libraries = {"torch.mm": product, "linear": torch.no_grad()(lambda: linear(product.a, product.b))}
    seconds = interleave({**libraries, **mixed}, repetitions, machine.device)
    rates = {name: product.flops / statistics.median(seconds[name]) for name in libraries}
    return Timing(seconds, flops, rates)


def in_precision(call: Callable[[], object], machine: Machine) -> Callable[[], object]:
    """The call under the machine's autocast."""

    def run() -> object:
        with machine.autocast():
            return call()

    return run


def print_speed(machine: Machine, *, models: list[str], image_size: int, num_prompts: int, repetitions: int) -> None:
    """Measures and prints both tables, freed memory kept."""
    keep_freed_memory()
    timing = measure(machine, models, image_size, num_prompts, repetitions)
    print(f"{machine.name}, precision {machine.precision}, {image_size} pixels")
    print_encoder_rows(timing, models)
    print_decoder_rows(timing, num_prompts)


def print_encoder_rows(timing: Timing, models: list[str]) -> None:
    """One row for each model."""
    seconds, rate = timing.seconds, max(timing.rates.values())
    rates = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in timing.rates.items())
    print(f"matrix product, GFLOP/s: {rates}")
    print(f"{'encoder':24}{'images/s':>10}{'released':>10}{'ratio':>8}{'of matmul rate':>16}")
    for name in models:
        ours, released = seconds[f"{name} encoder"], seconds[f"{name} encoder, released"]
        share = timing.flops[f"{name} encoder"] / statistics.median(ours) / rate
        figures = f"{1 / statistics.median(ours):10.2f}{1 / statistics.median(released):10.2f}"
        print(f"{name:24}{figures}{median_ratio(released, ours):8.2f}{share:16.2f}" + beside_fp32(timing, ours, name))


def print_decoder_rows(timing: Timing, num_prompts: int) -> None:
    """One call, and each other way."""
    ours = timing.seconds["one call"]
    print(f"{f'decoder, {num_prompts} prompts':24}{'prompts/s':>10}{'one call is faster':>20}")
    print(f"{'one call':24}{num_prompts / statistics.median(ours):10.1f}")
    for name in BESIDE:
        theirs = timing.seconds[name]
        note = beside_fp32(timing, ours, "") if name == "tiled" else ""
        print(f"{name:24}{num_prompts / statistics.median(theirs):10.1f}{median_ratio(theirs, ours):14.2f} times{note}")


def beside_fp32(timing: Timing, ours: list[float], model: str) -> str:
    """How much faster than the released design in fp32, where that was measured."""
    released = timing.seconds.get(f"{model} encoder, released, fp32" if model else "tiled, fp32")
    return f"   {median_ratio(released, ours):.2f} times released in fp32" if released else ""


def encoder_stages(sam: Sam, image_size: int, device: str) -> Stages:
    """Stages "encoder" and "encoder, released": one image of noise; `sam` with an `EfficientSAMEncoder`."""
    image = torch.randn(1, 3, image_size, image_size, device=device)
    assert isinstance(sam.image_encoder, EfficientSAMEncoder)
    plain = plain_encoder(sam.image_encoder)
    return without_gradients({"encoder": lambda: sam.image_encoder(image), "encoder, released": lambda: plain(image)})


def decoder_stages(sam: Sam, num_prompts: int, device: str) -> Stages:
    """Three masks for each of Q points on one image, in four ways.

    "one call"; "single calls", each from the image embedding; "clicks", each from what `Sam.prepare` keeps of the
    image, as in `SamPredictor`; "tiled", in one call as released.
    """
    grid = sam.image_size // 16
    embedding = torch.randn(1, 256, grid, grid, device=device)
    coords = torch.rand(1, num_prompts, 1, 2, device=device) * sam.image_size
    labels = torch.full((1, num_prompts, 1), FOREGROUND, device=device)

    def each(decode: Callable, image: object) -> None:
        for row in range(num_prompts):
            decode(image, coords[:, row : row + 1], labels[:, row : row + 1], multimask_output=True)

    return without_gradients(
        {
            "one call": lambda: sam.decode(embedding, coords, labels, multimask_output=True),
            "single calls": lambda: each(sam.decode, embedding),
            "clicks": lambda: each(sam.decode, sam.prepare(embedding)),
            "tiled": lambda: decode_tiled(sam, embedding, coords, labels, multimask_output=True),
        }
    )


def without_gradients(stages: Stages) -> Stages:
    """The same calls as in inference."""
    return {name: torch.no_grad()(stage) for name, stage in stages.items()}
