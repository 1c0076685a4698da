"""Seconds, of stages and of calls; on a GPU those of its stream."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Seconds spent in named stages. On a GPU it marks the stream and asks for the times later, so nothing waits."""

    def __init__(self) -> None:
        self.on_gpu = False
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to `stage`."""
        if self.on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((stage, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - begin

    def collect(self) -> dict[str, float]:
        """The seconds of each stage since the last call. Waits for the GPU."""
        for stage, start, end in self._events:
            end.synchronize()
            self._seconds[stage] = self._seconds.get(stage, 0.0) + start.elapsed_time(end) / 1000
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds


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
