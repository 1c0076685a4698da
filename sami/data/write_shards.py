"""Writing webdataset shards: a file appears under its name only when complete, with the same bytes in every run.

A run that is killed, at any moment, is continued by running it again.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import webdataset


def shard_name(prefix: str, index: int) -> str:
    """`train-000042.tar`: as webdataset's brace notation `train-{000000..000042}.tar` spells it."""
    return f"{prefix}-{index:06d}.tar"


@contextmanager
def complete_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the name `path` when the block ends and is gone if the block fails.

    Several processes may write the same file at once, as long as they all write the same bytes.
    """
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
    _sync_folder(path.parent)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of runs that were killed
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8; file names that are not valid Unicode come out as the bytes they are."""
    with complete_or_absent(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


def write_shard(path: Path, samples: Iterable[dict[str, str | bytes]]) -> None:
    """One tar file of these samples, whose bytes depend on them alone: no clock, no user name.

    Args:
        path: where the shard appears once the last sample is written.
        samples: `__key__` (no dots: webdataset cuts a name at its first dot), and one entry per extension.
    """
    tar_options = {"encoder": False, "user": "sami", "group": "sami", "mtime": 0}
    with complete_or_absent(path) as file, webdataset.TarWriter(file, **tar_options) as tar:
        for sample in samples:
            tar.write(sample)


def claim_folder(folder: Path, prefix: str, arguments: dict) -> None:
    """Make the folder and note in `{prefix}-manifest.json` what its shards `{prefix}-*.tar` are made from.

    Args:
        arguments: everything the bytes of the shards depend on, as JSON has it.

    Raises:
        ValueError: the folder cannot be written, or holds shards of this name made from something else.
    """
    manifest = folder / f"{prefix}-manifest.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not manifest.exists() and not any(folder.glob(f"{prefix}-*.tar")):
            write_text(manifest, json.dumps(arguments, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write into {folder} ({error.strerror}): give a folder of yours") from error
    if not manifest.exists():
        raise ValueError(f"{folder} holds {prefix}-*.tar but no {manifest.name}: not this command's, give a new folder")
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{manifest} is not readable as JSON: give a new folder, or delete this one") from error
    names = [name for name in arguments | before if arguments.get(name) != before.get(name)]
    if names:
        changes = ", ".join(f"{name}={before.get(name)} (now {arguments.get(name)})" for name in names)
        raise ValueError(f"{folder} was begun with {changes}: run with the same again, or give a new folder")


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk, where the system allows it (Windows and some network disks do not)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
