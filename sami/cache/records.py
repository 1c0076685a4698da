"""One record of a cache: a view of an image and its target, with a checksum, always of the same size.

In its shard a record is `{key}.view.npy`, a NumPy array of one structured element: `numpy.load` and webdataset read it
without this project. Where a record of one size lies can be computed, so a reader needs no index.

N tokens   C stored channels
"""

import io
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

NUMBER = {"fp32": "<f4", "fp16": "<f2", "int8": "|i1"}
TAR_BLOCK = 512
EXTENSION = "view.npy"
MAX_NAME = 100  # bytes; longer names take a tar header of their own

HEAD = np.dtype(
    [
        ("row", "<i8"),  # of the image in its unit: image shard or folder
        ("view", "<i8"),
        ("photo", "<u4"),  # CRC-32 of the image file
        ("size", "<i4", 2),  # (H, W) of the image
        ("box", "<i4", 4),  # (top, left, height, width) of the view, in pixels of the image
        ("flip", "?"),
        ("valid", "?"),  # False: the image was broken when the cache was written
    ]
)
HEAD_NAMES = HEAD.names or ()


@dataclass(frozen=True)
class RecordFormat:
    """The layout of all records of one cache."""

    storage: str  # fp32, fp16 or int8
    num_tokens: int  # N
    channels: int  # C

    @cached_property
    def dtype(self) -> np.dtype:
        """`HEAD`, then center and scale [C] for int8, values [N, C], and the CRC-32 of all that."""
        ranges = [("center", "<f2", (self.channels,)), ("scale", "<f2", (self.channels,))]
        return np.dtype(
            [
                *((name, HEAD[name]) for name in HEAD_NAMES),
                *(ranges if self.storage == "int8" else []),
                ("values", NUMBER[self.storage], (self.num_tokens, self.channels)),
                ("checksum", "<u4"),
            ]
        )

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """The fields that `TargetCodec` gives."""
        return ("values", "center", "scale") if self.storage == "int8" else ("values",)

    @cached_property
    def npy_header(self) -> bytes:
        """What `numpy.save` puts before the element."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": self.dtype.descr, "fortran_order": False, "shape": (1,)})
        return header.getvalue()

    @property
    def stride(self) -> int:
        """Bytes from one record of a shard to the next."""
        size = len(self.npy_header) + self.dtype.itemsize
        return TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK

    def offset(self, number: int) -> int:
        """Where the element of the shard's record `number` begins."""
        return number * self.stride + TAR_BLOCK + len(self.npy_header)

    def shard_bytes(self, num_records: int) -> int:
        """The size of a shard: its records and tar's end mark, in tar's units of 20 blocks."""
        return -(-(num_records * self.stride + 2 * TAR_BLOCK) // (20 * TAR_BLOCK)) * 20 * TAR_BLOCK

    def pack(self, head: np.void, stored: dict[str, np.ndarray]) -> bytes:
        """The file of one record.

        Args:
            head: of dtype `HEAD`.
            stored: what `TargetCodec.encode` gave for this view.

        Raises:
            ValueError: the target holds numbers that are infinite, or do not fit the storage.
        """
        record = np.zeros((), dtype=self.dtype)
        for name in HEAD_NAMES:
            record[name] = head[name]
        for name in self.stored if head["valid"] else ():
            assert (stored[name].dtype, stored[name].shape) == self.dtype[name].subdtype, "else NumPy would cast"
            if stored[name].dtype.kind == "f" and not np.isfinite(stored[name]).all():
                raise ValueError(
                    f"its target holds numbers that are infinite, or beyond what storage={self.storage} can "
                    "hold: try storage=fp32; if that fails too, the teacher gives infinite numbers"
                )
            record[name] = stored[name]
        record["checksum"] = checksum(record.tobytes())
        return self.npy_header + record.tobytes()

    def unpack(self, data: bytes) -> np.void:
        """The element at `offset`, `dtype.itemsize` bytes.

        Raises:
            ValueError: cut short, or changed since it was written.
        """
        if len(data) != self.dtype.itemsize:
            raise ValueError(f"its record is cut short: {len(data)} of {self.dtype.itemsize} bytes")
        record = np.frombuffer(data, dtype=self.dtype)[0]
        if record["checksum"] != checksum(data):
            raise ValueError("its record does not match its checksum: the file was damaged")
        return record


def checksum(data: bytes) -> int:
    """CRC-32 of a record without its last four bytes, which hold it."""
    return zlib.crc32(memoryview(data)[:-4])
