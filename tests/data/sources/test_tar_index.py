import io
import os
import tarfile
from pathlib import Path

import pytest
from conftest import write_shards

from sami.data.sources.tar_index import index_folder, load_index, scan_shard


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return Path(write_shards(tmp_path / "shards", [5])[0])


def test_spans_are_the_members_bytes(shard: Path) -> None:
    index, raw = load_index(shard), shard.read_bytes()
    assert index.keys.tolist() == [f"image_{n:04d}" for n in range(5)]
    with tarfile.open(shard) as tar:
        for row, key in enumerate(index.keys):
            for extension in ("jpg", "cls"):
                offset, size = index.span(row, extension)
                assert raw[offset : offset + size] == tar.extractfile(f"{key}.{extension}").read()
    assert index.span(0, "png") is None


def test_index_is_stored_and_follows_the_file(shard: Path, tmp_path: Path) -> None:
    load_index(shard)
    (stored,) = index_folder().glob("*.npz")
    written = stored.stat().st_mtime_ns
    load_index(shard)
    assert stored.stat().st_mtime_ns == written
    os.utime(shard, ns=(1, 1))  # another file of the same length, say
    load_index(shard)
    assert len(list(index_folder().glob("*.npz"))) == 2
    shard.write_bytes(Path(write_shards(tmp_path / "other", [3])[0]).read_bytes())
    assert len(load_index(shard).keys) == 3
    assert not list(index_folder().glob("*.lock"))


def test_sample_without_image_and_hidden_files(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.cls", "b.cls", "._c.jpg", "dir/d.JPG", "dir/d.seg.png"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    index = scan_shard(path)
    assert index.keys.tolist() == ["a", "b", "dir/d"]
    assert index.span(1, "jpg") is None and index.span(2, "jpg") and index.span(2, "seg.png")


@pytest.mark.parametrize("length", [700, 2000, 5000])
def test_cut_shard_is_named(shard: Path, length: int) -> None:
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"train-000\.tar.*cut short"):
        load_index(shard)


def test_cut_between_members_is_noticed(shard: Path) -> None:
    offset, size = load_index(shard).span(2, "cls")
    end = offset + (size + 511) // 512 * 512
    shard.write_bytes(shard.read_bytes()[:end])
    with pytest.raises(ValueError, match="no end mark"):
        load_index(shard)


def test_joined_compressed_empty_and_foreign_files(shard: Path, tmp_path: Path) -> None:
    data = shard.read_bytes()
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(shard)
    for content, message in (
        (data + data, "joined"),
        (packed.read_bytes(), "compressed"),
        (b"", "cannot be read"),
        (bytes(10240), "empty shard"),
        (b"\x93" * 4000, "no tar file"),
    ):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_index(shard)
