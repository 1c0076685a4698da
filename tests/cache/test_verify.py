"""Checking a cache: damage is found and named; what cutting maps costs."""

import csv
import os
from pathlib import Path
from threading import Event

import pytest
import torch
import torch.nn.functional as F
from caches import (
    cache_says,
    cached,
    flip_byte,
    run_cache,
    shard_bytes,
)
from conftest import draw_image, encode, write_folder
from torch import Tensor
from training_runs import run_pretrain

from sami.cache.manifest import read_manifest, record_format
from sami.cache.split import CacheOptions, CacheSplit, RunningTeacher
from sami.cache.verify import crop_error
from sami.cache.views import ViewsToCache
from sami.cache.write import write_split
from sami.data.pretraining import PretrainingData
from sami.models.teachers import Teacher


def test_cut_and_missing_shards_are_made_again(copied: tuple[list[str], Path], tmp_path: Path) -> None:
    data, path = copied
    before = shard_bytes(path)
    (path / "train" / "view01-000002.tar").unlink()
    os.truncate(path / "train" / "view00-000001.tar", 5000)
    code, said = cache_says("verify", [*data, f"cache.path={path}"], tmp_path)
    assert code == 2
    assert "view01-000002.tar is missing" in said and "view00-000001.tar has 5000 bytes" in said
    assert "view00-000001.tar, record 4, key" in said  # those that were cut off are named
    assert run_cache("write", [*data, f"cache.path={path}"]) == 0
    assert shard_bytes(path) == before
    assert run_cache("verify", [*data, f"cache.path={path}"]) == 0


def test_a_flipped_byte_is_found_and_skipped(copied: tuple[list[str], Path], tmp_path: Path) -> None:
    data, path = copied
    layout = record_format(read_manifest(path / "train"))
    shard = path / "train" / "view00-000001.tar"
    flip_byte(shard, layout.offset(3) + 200)
    code, said = cache_says("verify", [*data, f"cache.path={path}"], tmp_path)
    assert code == 2 and "1 places are damaged" in said
    assert f"{shard}, record 3, key image_0008: its record does not match its checksum" in said

    run = tmp_path / "run"
    assert run_pretrain(run, [*data, *cached(path), "callbacks.broken_images.max_rate=0.5"]) == 0
    with open(run / "broken_images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"].split(": ")[1] for row in rows] == ["image_0008"]
    assert f"cache {shard}, record 3: its record does not match its checksum" in rows[0]["reason"]


def test_verify_speaks_of_images_that_were_or_became_broken(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 20)
    first, second = sorted(images.rglob("*.jpg"))[3:5]
    whole = first.read_bytes()
    first.write_bytes(b"no image")
    data = ["data=images_folder", f"data.root={images}", f"cache.path={tmp_path}/targets", "verify_images=20"]
    code, said = cache_says("write", data, tmp_path)
    assert code == 0 and f"2 targets are missing, the first of {first}" in said
    assert run_cache("verify", data) == 0
    first.write_bytes(whole)
    code, said = cache_says("verify", data, tmp_path)
    assert code == 2 and "it was broken when the cache was written, and can be read now. Delete" in said
    first.write_bytes(b"no image")
    second.write_bytes(b"no image")
    code, said = cache_says("verify", data, tmp_path)
    assert code == 2 and "the image cannot be read any more" in said


def test_verify_asks_for_no_more_views_than_there_are(made: tuple[list[str], Path], tmp_path: Path) -> None:
    code, said = cache_says("verify", [*made[0], f"cache.path={made[1]}", "cache.num_views=3"], tmp_path)
    assert code == 2 and "holds 2 views, not num_views=3" in said


def test_verify_knows_another_teacher(made: tuple[list[str], Path], tmp_path: Path) -> None:
    code, said = cache_says("verify", [*made[0], f"cache.path={made[1]}", "teacher.name=test_vit2"], tmp_path)
    assert code == 2 and "teacher.name: test_vit in the cache, test_vit2 now" in said and "teacher_weights" in said


class Colours(Teacher):
    """The mean colour of each patch, which moves with the image; `around` adds the mean of the whole image."""

    width = 3

    def __init__(self, around: float) -> None:
        super().__init__(16)
        self.around = around

    def target(self, image: Tensor) -> Tensor:
        local = F.avg_pool2d(image, 16).flatten(2).transpose(1, 2)  # [B, N, 3]
        return local + self.around * image.mean(dim=(2, 3)).unsqueeze(1)


def gaps(tmp_path: Path, around: float, *, flip: float) -> dict[str, tuple[float, float]]:
    """Of smooth images of two shapes."""
    for number in range(6):
        height, width = (160, 256) if number % 2 else (256, 200)
        image = draw_image(number, height=height, width=width, grain=60)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(encode(image, "PNG"))
    data = PretrainingData(
        str(tmp_path / "images"), None, image_size=64, patch_size=16, seed=0, num_workers=0, shuffle_window=1,
        scale=(0.2, 0.5), ratio=(0.75, 1.33), flip=flip, num_views=None, cache=None, val_batch_size=4,
    )  # fmt: skip
    options = CacheOptions(
        path=str(tmp_path / f"cache{around}{flip}"), kind="maps", num_views=1, storage="fp16", channels=None,
        map_size=256, precision="32", batch_size=4, shard_size=4, num_workers=0, max_broken_rate=0.0,
    )  # fmt: skip
    views = ViewsToCache(data.train_source, image_size=256, crops=data.crops, seed=0, whole=True)
    running = RunningTeacher(Colours(around), precision="32", device=torch.device("cpu"))
    split = CacheSplit("train", options, views, running.network, {"_target_": "Colours"})
    write_split(split, running, split.claim(running, None), (0, 1), Event())
    assert split.finish() == 0
    return crop_error(split, data, running, 6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_local_teacher_has_no_gap(tmp_path: Path, flip: float) -> None:
    """Boxes, flips and the frame of the map are right: a shift by half a cell would show."""
    for cosine, explained in gaps(tmp_path, 0.0, flip=flip).values():
        assert cosine > 0.995 and explained > 0.985


def test_a_teacher_that_looks_around_has_one(tmp_path: Path) -> None:
    for _, explained in gaps(tmp_path, 3.0, flip=0.5).values():
        assert explained < 0.95
