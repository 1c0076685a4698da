"""Seconds, of a CPU's work or of a GPU's."""

import time
from collections.abc import Callable

import torch


def measure_seconds(run: Callable[[], object], device: str) -> float:
    """The seconds of one call, on a GPU those between two marks in its stream."""
    if device != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
