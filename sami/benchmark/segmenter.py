"""The benchmark's tables of a segmenter: its encoder and decoder beside the released design, and a step's memory.

On a CPU everything is measured twice, in processes of their own. By default glibc hands large freed blocks back to the
system, and the released design, which needs many, then waits for pages more than it computes; that is how it is used.
With freed blocks kept (`sami.entry.keep_freed_memory`) only the computing is compared.
"""

import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch

from sami.benchmark.pretraining import Machine, MatrixProduct, interleave, median_ratio
from sami.benchmark.stages import count_flops, decoder_stages, encoder_stages
from sami.methods.prompting import SamProtocol
from sami.methods.step_memory import count_step
from sami.models.build import build_sam
from sami.ops.products import linear

BESIDE = ("single calls", "clicks", "tiled")  # what one call of the decoder is compared with


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
    stages: dict[str, Callable[[], object]] = {}
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


def print_speed(
    machine: Machine,
    keep_memory: Callable[[], None],
    *,
    models: list[str],
    image_size: int,
    num_prompts: int,
    repetitions: int,
) -> None:
    """Measures and prints both tables, and on a CPU again in a process that began with `keep_memory`."""
    print(f"{machine.name}, precision {machine.precision}, {image_size} pixels")
    for kept in (False, True) if machine.device == "cpu" else (False,):
        begin = keep_memory if kept else None
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin) as process:
            timing = process.submit(measure, machine, list(models), image_size, num_prompts, repetitions).result()
        print(f"\nfreed memory {'kept' if kept else 'handed back, as by default'}")
        print_encoders(timing, models)
        print_decoder(timing, num_prompts)


def print_encoders(timing: Timing, models: list[str]) -> None:
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


def print_decoder(timing: Timing, num_prompts: int) -> None:
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


def print_memory(step: Mapping, *, precision: str) -> None:
    """Counts what a step of fine-tuning with SAM's protocol holds."""
    protocol = SamProtocol(num_clicks=step["num_clicks"], num_repeats=step["num_repeats"])
    B, Q, S = step["num_images"], step["num_masks"], step["image_size"]
    memory = count_step(step["model"], protocol, B=B, Q=Q, S=S, bf16=precision == "bf16")
    print(
        f"\na step of {step['model']}, {B} images x {Q} masks, {S} pixels, {protocol.num_rounds} rounds: GiB, counted"
    )
    rows = {
        "as here, a backward pass after each round": memory.peak,
        "with method.checkpoint_activations": memory.checkpointed_peak,
        "if all rounds waited for one backward pass": memory.peak_of_one_backward,
    }
    for name, size in rows.items():
        print(f"{name:46}{size / 2**30:6.1f}")
