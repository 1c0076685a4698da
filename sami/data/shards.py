"""Writing webdataset shards: a file appears under its name only when complete, with the same bytes in every run.

A run that is killed, at any moment, is continued by running it again.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from webdataset.writer import TarWriter

from sami.files import whole_file


def shard_name(prefix: str, index: int) -> str:
    """`train-000042.tar`: as webdataset's brace notation `train-{000000..000042}.tar` spells it."""
    return f"{prefix}-{index:06d}.tar"


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8; file names that are not valid Unicode come out as the bytes they are."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


def write_shard(path: Path, samples: Iterable[dict[str, str | bytes]]) -> None:
    """One tar file of these samples, whose bytes depend on them alone: no clock, no user name.

    Args:
        path: where the shard appears once the last sample is written.
        samples: `__key__` (no dots: webdataset cuts a name at its first dot), and one entry per extension.
    """
    tar_options = {"encoder": False, "user": "sami", "group": "sami", "mtime": 0}
    with whole_file(path) as file, TarWriter(file, **tar_options) as tar:
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
