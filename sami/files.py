"""Files that appear under their name only when complete, and tables that grow by rows."""

import csv
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the name `path` once it is safe on disk, and is gone if the block fails.

    A crash at any moment leaves the old file of that name or the new one, never a part of one.
    Several processes may write the same file at once, as long as they all write the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(partial, path)
        except FileNotFoundError:  # another process has finished this file and swept ours away, see below
            if not path.exists():
                raise
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of runs that were killed
        leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk, where the system allows it (Windows and some network disks do not)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Adds rows to a CSV file; a new one begins with `header`."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as file:
        csv.writer(file).writerows([header, *rows] if new else rows)
