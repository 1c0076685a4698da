import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from sami.cache.records import EXTENSION, HEAD, RecordFormat
from sami.data.shards import write_shard

FORMATS = [
    RecordFormat("fp32", 4, 3),
    RecordFormat("fp16", 4, 3),
    RecordFormat("int8", 4, 3),
    RecordFormat("int8", 49, 64),
    RecordFormat("int8", 67, 2),  # fills its blocks to the last byte
]


def draw_head(row: int, *, valid: bool = True) -> np.void:
    values = (row, 2, 0xFFFFFFFF - row, (480, 640), (1, 2, 300 + row, 400), row % 2, valid)
    return np.array([values], dtype=HEAD)[0]


def draw_stored(layout: RecordFormat, seed: int) -> dict[str, np.ndarray]:
    """Numbers as `TargetCodec` gives them, of every size."""
    rng = np.random.default_rng(seed)
    stored = {}
    for name in layout.stored:
        kind, shape = layout.dtype[name].subdtype
        stored[name] = (rng.standard_normal(shape) * 40).clip(-127, 127).astype(kind)
    return stored


def write_records(path: Path, layout: RecordFormat, num_records: int) -> Path:
    files = (layout.pack(draw_head(row), draw_stored(layout, row)) for row in range(num_records))
    write_shard(path, ({"__key__": f"image_{row:04d}", EXTENSION: data} for row, data in enumerate(files)))
    return path


def check_record(record: np.void, layout: RecordFormat, row: int) -> None:
    assert all((record[name] == draw_head(row)[name]).all() for name in HEAD.names)
    for name, expected in draw_stored(layout, row).items():
        assert record[name].dtype == expected.dtype and (record[name] == expected).all()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("num_records", [1, 7, 9, 10, 30])  # 9 short records and the end mark fill a unit of tar's
def test_records_lie_where_they_are_looked_for(tmp_path: Path, layout: RecordFormat, num_records: int) -> None:
    path = write_records(tmp_path / "a.tar", layout, num_records)
    raw = path.read_bytes()
    assert len(raw) == layout.shard_bytes(num_records)
    for row in range(num_records):
        start = layout.offset(row)
        check_record(layout.unpack(raw[start : start + layout.dtype.itemsize]), layout, row)
    with tarfile.open(path) as tar:
        places = [member.offset_data + len(layout.npy_header) for member in tar]
    assert places == [layout.offset(row) for row in range(num_records)]


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_numpy_and_webdataset_read_a_shard(tmp_path: Path, layout: RecordFormat) -> None:
    path = write_records(tmp_path / "a.tar", layout, 3)
    with tarfile.open(path) as tar:
        alone = [np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False) for member in tar]
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["image_0000", "image_0001", "image_0002"]
    for row in range(3):
        for array in (alone[row], samples[row]["view.npy"]):
            assert array.shape == (1,) and array.dtype == layout.dtype
            check_record(array[0], layout, row)


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_every_flipped_bit_is_noticed(storage: str) -> None:
    layout = RecordFormat(storage, 2, 3)
    whole = layout.pack(draw_head(5), draw_stored(layout, 5))[len(layout.npy_header) :]
    check_record(layout.unpack(whole), layout, 5)
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="does not match its checksum: the file was damaged"):
            layout.unpack(bytes(damaged))


def test_a_hole_in_the_file_is_noticed() -> None:
    """A disk that lost a block gives zeros."""
    layout = FORMATS[0]
    with pytest.raises(ValueError, match="does not match its checksum"):
        layout.unpack(bytes(layout.dtype.itemsize))


def test_a_record_cut_short_is_noticed() -> None:
    layout = FORMATS[2]
    whole = layout.pack(draw_head(0), draw_stored(layout, 0))[len(layout.npy_header) :]
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=rf"cut short: {length} of {len(whole)} bytes"):
            layout.unpack(whole[:length])


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    ("storage", "field"), [("fp32", "values"), ("fp16", "values"), ("int8", "center"), ("int8", "scale")]
)
def test_infinite_targets_are_refused(storage: str, field: str, number: float) -> None:
    layout = RecordFormat(storage, 4, 3)
    stored = draw_stored(layout, 0)
    stored[field].flat[-1] = number
    with pytest.raises(ValueError, match=rf"target holds numbers .* storage={storage} can hold"):
        layout.pack(draw_head(12), stored)


def test_a_broken_image_stores_zeros() -> None:
    """Its target may be anything: the teacher saw a black image, if it saw one."""
    layout = FORMATS[2]
    stored = {
        name: np.full_like(array, np.nan if array.dtype.kind == "f" else 9)
        for name, array in draw_stored(layout, 0).items()
    }
    record = layout.unpack(layout.pack(draw_head(3, valid=False), stored)[len(layout.npy_header) :])
    assert record["row"] == 3 and not record["valid"]
    assert not any(record[name].any() for name in layout.stored)
