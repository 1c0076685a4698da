import os
import tarfile
from pathlib import Path

import pytest
from conftest import draw_image, encode, write_folder, write_shards

from sami.data.decode import BrokenImage
from sami.data.sources.base import NO_LABEL
from sami.data.sources.images import FolderSource, ShardSource


def test_shards_by_brace_pattern(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 2])
    source = ShardSource(f"{tmp_path}/train-{{000..001}}.tar")
    assert source.counts == [3, 2]
    image = source.read(1, 1)
    assert image.image == encode(draw_image(4)) and image.label == 0
    assert source.name(1, 1) == f"{tmp_path}/train-001.tar: image_0004"


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardSource, "max_open", 2)
    source = ShardSource(write_shards(tmp_path, [1] * 10))
    before = len(os.listdir("/proc/self/fd"))
    for unit in [*range(10), *range(10)]:
        assert source.read(unit, 0).image == encode(draw_image(unit))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_sample_without_image_or_with_a_bad_label(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, text in (("one.cls", "1"), ("two.jpg", "x"), ("two.cls", "dog"), ("three.jpg", "x")):
            (tmp_path / name).write_text(text)
            tar.add(tmp_path / name, name)
    source = ShardSource(str(path))
    with pytest.raises(BrokenImage, match="no image in this sample, only cls"):
        source.read(0, 0)
    with pytest.raises(BrokenImage, match="not a class index"):
        source.read(0, 1)
    assert source.read(0, 2).label == NO_LABEL


def test_missing_and_remote_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, [1])
    with pytest.raises(ValueError, match=r"2 of the 3 shards .* the first is .*train-001\.tar"):
        ShardSource(f"{tmp_path}/train-{{000..002}}.tar")
    for remote in ("https://host/a.tar", "pipe:cat a.tar"):
        with pytest.raises(ValueError, match="random positions"):
            ShardSource(remote)


def test_fingerprint_follows_the_images(tmp_path: Path) -> None:
    first = ShardSource(write_shards(tmp_path / "a", [2, 3])).fingerprint
    assert ShardSource(write_shards(tmp_path / "b", [2, 3])).fingerprint == first
    assert ShardSource(write_shards(tmp_path / "c", [3, 2])).fingerprint != first


def test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, 5)
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "LOOSE.JPEG").write_bytes(encode(draw_image(9)))
    source = FolderSource(str(tmp_path))
    assert source.counts == [6] and source.classes == ["class_0", "class_1"]
    assert [source.read(0, row).label for row in range(6)] == [NO_LABEL, 0, 0, 0, 1, 1]
    assert source.read(0, 4).image == encode(draw_image(1))


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image below"):
        FolderSource(str(tmp_path))
    with pytest.raises(ValueError, match="not a folder"):
        FolderSource(str(tmp_path / "nowhere"))


def test_a_file_that_vanished_is_a_broken_image(tmp_path: Path) -> None:
    source = FolderSource(str(write_folder(tmp_path, 2)))
    (tmp_path / "class_0" / "image_000.jpg").unlink()
    with pytest.raises(BrokenImage, match="FileNotFoundError"):
        source.read(0, 0)
