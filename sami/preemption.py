"""Being asked to leave: all ranks finish the same step, write, and say that there is more to do."""

import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the job failed for now, run it again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(SystemExit):
    """The run stopped on request and can be continued; ends the process with `EXIT_REQUEUE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_REQUEUE)


def on_signal(act: Callable[[], None]) -> None:
    """Calls `act` at the first SIGTERM, SIGUSR1 or Ctrl-C; a second Ctrl-C ends the process as usual."""

    def handle(number: int, _: Any) -> None:
        act()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in SIGNALS:
        signal.signal(number, handle)


class Consensus:
    """What any rank wishes, all ranks do, at the same step.

    Signals reach ranks at different times, and one that left alone would leave the others waiting. Wishes travel
    between CPUs while the next step runs, so no GPU waits for them; the answer is that of one call earlier.
    """

    def __init__(self) -> None:
        distributed = dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo") if distributed else None
        self.pending: tuple[Any, torch.Tensor] | None = None

    def any(self, *wishes: bool) -> list[bool]:
        """Which of these some rank wished at the last call; on a single rank, at this one. Every rank has to call."""
        if self.group is None:
            return list(wishes)
        decided = self.finish() or [False] * len(wishes)
        votes = torch.tensor(wishes, dtype=torch.int32)
        self.pending = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.group, async_op=True), votes
        return decided

    def finish(self) -> list[bool] | None:
        """Waits for what is under way."""
        if self.pending is None:
            return None
        handle, votes = self.pending
        handle.wait()
        self.pending = None
        return votes.bool().tolist()
