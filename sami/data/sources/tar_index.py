"""Random access to webdataset tar shards: an index of where each sample lies, so that any can be read alone.

A webdataset shard is a tar file in which consecutive members with one base name are one sample. Reading it as a
stream cannot be restarted in the middle without replaying it; with the byte ranges of its members any position of an
epoch costs the same. The ranges are found once, by walking the headers, and kept in a small file.
"""

import fcntl
import hashlib
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from webdataset.tariterators import base_plus_ext

from sami.data.decode import IMAGE_EXTENSIONS
from sami.files import whole_file


class TarIndex(NamedTuple):
    """The samples of one shard, in file order."""

    keys: np.ndarray  # [n] str
    extensions: np.ndarray  # [e] str, all that occur in this shard
    spans: np.ndarray  # [n, e, 2] int64, offset and size in bytes; offset -1 where a sample lacks the extension

    def span(self, row: int, extension: str) -> tuple[int, int] | None:
        """(offset, size) of one member, or None."""
        columns = np.flatnonzero(self.extensions == extension)
        if len(columns) == 0 or self.spans[row, columns[0], 0] < 0:
            return None
        offset, size = self.spans[row, columns[0]]
        return int(offset), int(size)

    def image_span(self, row: int) -> tuple[int, int] | None:
        """`span` of a sample's image, whatever its extension."""
        return next((span for extension in IMAGE_EXTENSIONS if (span := self.span(row, extension))), None)


def index_folder() -> Path:
    """Where indexes are kept: $SAMI_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SAMI_CACHE") or Path.home() / ".cache" / "sami") / "tar_index"


def load_index(path: Path) -> TarIndex:
    """The index of a shard, made if this very file (path, size, time) has none yet. Safe with many processes.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: compressed, cut short, not a tar file, or without a sample.
    """
    status = path.stat()
    name = hashlib.sha1(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()
    stored = index_folder() / f"{name}.npz"
    if not stored.exists():
        if not writable(stored.parent):
            return scan_shard(path)  # a read-only home folder costs a scan at each start, nothing else
        with open(stored.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the ranks of a node share the work instead of repeating it
            if not stored.exists():
                index = scan_shard(path)
                with whole_file(stored) as file:
                    np.savez(file, **index._asdict())
        stored.with_suffix(".lock").unlink(missing_ok=True)
    with np.load(stored, allow_pickle=False) as arrays:
        return TarIndex(arrays["keys"], arrays["extensions"], arrays["spans"])


def writable(folder: Path) -> bool:
    """Whether files can be made in this folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def scan_shard(path: Path) -> TarIndex:
    """Walks the headers of a shard. Raises ValueError: as `load_index`."""
    rows: list[tuple[str, dict[str, tuple[int, int]]]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, extension = base_plus_ext(member.name)
                if not member.isfile() or key is None or extension is None or os.path.basename(key).startswith("."):
                    continue
                if not rows or rows[-1][0] != key:
                    rows.append((key, {}))
                rows[-1][1][extension.lower()] = (member.offset_data, member.size)
            end = tar.offset
    except tarfile.ReadError as error:
        raise ValueError(
            f"{path} cannot be read as an uncompressed tar shard ({error}): it is cut short, compressed or no tar "
            "file. Fetch it again, or unpack it (shards are read at random positions)."
        ) from error
    check_end(path, end)
    if not rows:
        raise ValueError(f"{path} is an empty shard: it holds no sample")
    extensions = sorted({extension for _, spans in rows for extension in spans})
    spans = np.full((len(rows), len(extensions), 2), -1, dtype=np.int64)
    for row, (_, members) in enumerate(rows):
        for extension, span in members.items():
            spans[row, extensions.index(extension)] = span
    return TarIndex(np.array([key for key, _ in rows]), np.array(extensions), spans)


def check_end(path: Path, end: int) -> None:
    """A tar file closes with zeros: without them it was cut between two members, with data behind them it holds more.

    Raises:
        ValueError: either of the two.
    """
    with open(path, "rb") as file:
        file.seek(end)
        tail = file.read(1 << 20)
    if not tail or any(tail):
        problem = "holds data behind its last whole member: it is cut short, or two files were joined"
        raise ValueError(f"{path} {problem if tail else 'has no end mark: it is cut short'}. Fetch or write it again.")


def unite_rows(index: TarIndex) -> TarIndex:
    """Rows of one key become one, in order of the first of them."""
    _, first, number = np.unique(index.keys, return_index=True, return_inverse=True)
    if len(first) == len(index.keys):
        return index
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    spans = np.full((len(first), *index.spans.shape[1:]), -1, dtype=np.int64)
    np.maximum.at(spans, position[number.ravel()], index.spans)  # absent members are -1
    return TarIndex(index.keys[first[order]], index.extensions, spans)
