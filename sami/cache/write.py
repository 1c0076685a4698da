"""Writing a cache: the teacher computes while others load what comes next and store what came before.

B images   N tokens   E target width
"""

import errno
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from sami.cache.codec import arrive, encode_and_measure, to_host
from sami.cache.layout import ShardPart
from sami.cache.manifest import TOTALS, record_format, write_note
from sami.cache.records import EXTENSION, MAX_NAME, RecordFormat
from sami.cache.split import CacheSplit, RunningTeacher
from sami.cache.teacher import build_codec
from sami.cache.views import ShardSampler
from sami.cli import print0
from sami.clock import StageClock
from sami.data.loading import BatchLoader
from sami.data.shards import write_shard
from sami.preemption import Preempted

PATIENCE = 10  # broken images before their rate counts


@dataclass
class Work:
    """What a process wrote, and how busy its teacher was."""

    views: int = 0
    seconds: float = 0.0  # in all
    teaching: float = 0.0  # seconds

    @property
    def idle(self) -> float:
        """The share of time in which the teacher did not compute."""
        return 1 - self.teaching / self.seconds if self.seconds else 0.0


def write_split(
    split: CacheSplit, running: RunningTeacher, recipe: dict[str, Any], share: tuple[int, int], stop: threading.Event
) -> Work:
    """Writes the shards of this share that are not there yet.

    Raises:
        Preempted: `stop` was set; the shard under way is left out.
        ValueError: the disk is full, too many images are broken, or a target is infinite. What was written stays.
    """
    parts = split.remaining(share)
    codec, work = build_codec(recipe).to(running.device), Work()
    total = sum(part.num_images for part in list(split.layout.shards(split.num_views))[share[0] :: share[1]])
    left = sum(part.num_images for part in parts)
    sampler = ShardSampler(parts, batch_size=split.options.batch_size)
    loader = BatchLoader(split.views, sampler, num_workers=split.options.num_workers)
    clock = StageClock()
    clock.on_gpu = running.device.type == "cuda"
    begin = time.perf_counter()
    with (
        tqdm(desc=f"writing {split.name}", total=total, initial=total - left, unit="view") as progress,
        ShardWriter(split, record_format(recipe), parts, progress) as writer,
    ):
        for number, batch in enumerate(loader):
            if stop.is_set():
                print0(f"asked to stop: {split.folder} keeps its finished shards; the same command continues")
                raise Preempted
            with clock("teacher"):
                target = running(batch, whole=split.views.whole)  # [B, N, E]
            work.views += len(target)
            token_valid = split.views.valid_tokens(batch["head"], split.grid)  # [B, N]
            writer.put(batch, *encode_and_measure(codec, target, token_valid))
            if number % 100 == 99:  # the marks in a GPU's stream are not to pile up
                work.teaching += clock.collect()["teacher"]
    work.seconds, work.teaching = time.perf_counter() - begin, work.teaching + clock.collect().get("teacher", 0.0)
    return work


class ShardWriter:
    """A thread that turns encoded batches into shards, in the order of `parts`.

    Raises, in `put` and on leaving: what went wrong in the thread.
    """

    def __init__(self, split: CacheSplit, layout: RecordFormat, parts: list[ShardPart], progress: tqdm) -> None:
        self.split, self.format, self.parts, self.progress = split, layout, parts, progress
        self.batches: queue.Queue = queue.Queue(maxsize=3)
        self.error: BaseException | None = None
        self.cancelled = threading.Event()
        self.seen = self.broken = 0
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> "ShardWriter":
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self.cancelled.set()
        self.thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raises what went wrong."""
        if isinstance(self.error, OSError) and self.error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"the disk of {self.split.folder} is full ({self.error.strerror}). All shards that were finished are "
                "kept: make room, and the same command continues"
            ) from self.error
        if self.error is not None:
            raise self.error

    def put(self, batch: dict[str, Any], stored: dict[str, Tensor], figures: dict[str, Tensor]) -> None:
        """Hands over a batch; waits while three are waiting."""
        device = stored["values"].device
        item = (batch, to_host(stored, device), to_host(figures, device))
        while True:
            self.check()
            try:
                return self.batches.put(item, timeout=1)
            except queue.Full:
                continue

    def run(self) -> None:
        """The thread's body."""
        try:
            for part in self.parts:
                note: dict[str, Any] = dict.fromkeys(TOTALS, 0) | {"skipped": {}}
                note |= {"worst_cosine": 1.0, "worst_relative_error": 0.0}
                write_shard(self.split.folder / part.name, self.samples(part, note))
                size = (self.split.folder / part.name).stat().st_size
                assert size == self.format.shard_bytes(part.num_images), "records are not where they are looked for"
                self.check_last(part)
                facts = {name: np.asarray(note[name]).tolist() for name in note if name != "skipped"}
                facts |= {"photos": part.num_images, "bytes": size, "skipped": note["skipped"]}
                write_note(self.split.folder, part, facts)
        except BaseException as error:
            self.error = error

    def check_last(self, part: ShardPart) -> None:
        """Reads the last record, whose position depends on all before it."""
        with open(self.split.folder / part.name, "rb") as file:
            file.seek(self.format.offset(part.num_images - 1))
            self.format.unpack(file.read(self.format.dtype.itemsize))

    def samples(self, part: ShardPart, note: dict[str, Any]) -> Iterator[dict[str, str | bytes]]:
        """The samples of one shard. Adds to `note` what it is to say."""
        rows = iter(range(part.first_row, part.first_row + part.num_images))
        written = 0
        while written < part.num_images:
            batch, *copies = self.take()
            stored, figures = (arrive(*copy) for copy in copies)
            add_figures(note, figures)
            note["skipped"] |= dict(batch["broken"])
            self.count_broken(batch)
            for index, head in enumerate(batch["head"]):
                row = next(rows)
                assert row == head["row"]
                try:
                    data = self.format.pack(head, {name: array[index] for name, array in stored.items()})
                except ValueError as error:
                    where = f"{self.split.source.name(part.unit, row)}, view {part.view}"
                    raise ValueError(f"{where}: {error}") from error
                yield {"__key__": record_key(batch["keys"][index], row), EXTENSION: data}
            written += len(batch["head"])
            self.progress.update(len(batch["head"]))

    def take(self) -> tuple[Any, ...]:
        """What was put first. Raises InterruptedError where nothing more will come."""
        while True:
            try:
                return self.batches.get(timeout=0.2)
            except queue.Empty:
                if self.cancelled.is_set():
                    raise InterruptedError from None

    def count_broken(self, batch: dict[str, Any]) -> None:
        """Raises ValueError when too many images are broken."""
        self.seen, self.broken = self.seen + len(batch["head"]), self.broken + len(batch["broken"])
        rate = self.split.options.max_broken_rate
        if self.broken >= PATIENCE and self.broken > rate * self.seen:
            where, why = batch["broken"][-1]
            raise ValueError(
                f"{self.broken} of {self.seen} images cannot be used, more than max_broken_rate={rate}; the last "
                f"is {where} ({why}). Repair them, or raise max_broken_rate"
            )


def add_figures(note: dict[str, Any], figures: dict[str, np.ndarray]) -> None:
    """Adds the figures of a batch to those of its shard."""
    for name in TOTALS:
        note[name] = note[name] + figures[name].sum(axis=0)
    valid = figures["views"] > 0
    note["worst_cosine"] = min([note["worst_cosine"], *figures["cosine"][valid]])
    note["worst_relative_error"] = max([note["worst_relative_error"], *figures["relative_error"][valid]])


def record_key(key: str, row: int) -> str:
    """The image's own key where it fits into a plain tar header, so that records can be joined with their images."""
    fits = key.isascii() and len(f"{key}.{EXTENSION}") <= MAX_NAME and "." not in key.rpartition("/")[2]
    return key if fits else f"{row:08d}"
