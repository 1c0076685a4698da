"""Image files, as found, to the bytes that go into a shard.

Every file is decoded here once, so that a broken one is found while packing and not while training.
"""

import io
import os
import signal
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from sami.data.decode import FORMATS, read_header, reason, to_rgb, turn

QUEUED_PER_WORKER = 8  # files: enough that no process waits for a slow one, few enough to hold their bytes


class Outcome(NamedTuple):
    """What became of an image: bytes to store, or the reason why there are none."""

    extension: str
    data: bytes
    reason: str  # empty when all is well


def reencode_files(
    paths: list[Path], *, short_side: int | None, quality: int, num_workers: int
) -> Generator[Outcome, None, None]:
    """One outcome per file, in order; close it to end the processes.

    Args:
        short_side, quality: see `reencode`.
        num_workers: processes, 0 for none but this one.
    """
    if num_workers == 0:
        yield from (_reencode_file(path, short_side, quality) for path in paths)
        return
    # spawn: a fork copies the locks that other threads (the progress bar's, torch's) happen to hold
    pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_prepare_worker)
    try:
        jobs = (pool.submit(_reencode_file, path, short_side, quality) for path in paths)
        queue = deque(islice(jobs, QUEUED_PER_WORKER * num_workers))
        while queue:
            outcome = queue.popleft().result()
            queue.extend(islice(jobs, 1))
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


def reencode(data: bytes, *, short_side: int | None, quality: int) -> tuple[str, bytes]:
    """The extension and the bytes to store for one image file.

    With `short_side`, an RGB JPEG, upright, not enlarged. A file that is one already, and small enough, stays as it is.
    Without, the file itself; its extension follows its content, whatever it is called.

    Args:
        data: the file.
        short_side: longest allowed short side, in pixels.
        quality: of a new JPEG, 1 to 100.

    Raises:
        Exception: of many kinds: the image is broken, or cannot be stored (Pillow's decoders raise what they like).
    """
    _, orientation = read_header(data)
    with Image.open(io.BytesIO(data)) as image:
        kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG with others behind it
        is_small = short_side is None or min(image.size) <= short_side
        is_plain = image.format == "JPEG" and image.mode == "RGB" and orientation == 1
        if short_side is None or (is_small and is_plain):
            if kind not in FORMATS:
                raise ValueError(f"a {image.format} image cannot be stored as it is: set short_side to re-encode it")
            image.draft(None, (1, 1))  # reads all of a JPEG, to see that it is whole, but computes 1/64 of its pixels
            to_rgb(image)
            return FORMATS[kind][0], data
        if not is_small:
            image.draft(None, (2 * short_side, 2 * short_side))  # at least twice the final size, several times faster
        rgb = Image.fromarray(turn(np.asarray(to_rgb(image)), orientation))
        if not is_small:
            scale = short_side / min(rgb.size)
            rgb = rgb.resize([max(short_side, round(side * scale)) for side in rgb.size], Image.Resampling.BICUBIC)
        # simplejpeg writes pixels only, where Pillow would add the profile and the orientation of the original
        return "jpg", simplejpeg.encode_jpeg(np.asarray(rgb), quality=quality, colorsubsampling="420")


def _reencode_file(path: Path, short_side: int | None, quality: int) -> Outcome:
    try:
        return Outcome(*reencode(path.read_bytes(), short_side=short_side, quality=quality), reason="")
    except Exception as error:  # broken files make the decoders raise nearly anything
        return Outcome("", b"", reason=reason(error))


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it is killed: a pool's process would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    parent = parent_process()
    assert parent is not None, "called in a process of a pool"

    def follow_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
