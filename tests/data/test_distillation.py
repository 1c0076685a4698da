"""Whole images for distillation: what counts as image, maps that come back as they were written, images of any kind."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import OPTIONS as CACHE_OPTIONS
from caches import TEACHER
from conftest import draw_image, encode, write_folder
from masked_images import write_coco, write_sa1b_folder, write_sa1b_tars
from training_runs import TINY, compose_config

from sami.cache import __main__ as cache
from sami.cache.open import Cache
from sami.cache.records import HEAD
from sami.cache.teacher import CachedTeacher
from sami.cache.views import ViewsToCache
from sami.data.distillation import WholeImageData
from sami.data.square import content_cells

OPTIONS = {
    **{"image_size": 64, "resize_mode": "pad", "num_prompts": 3, "num_val_masks": 2, "seed": 0},
    **{"num_workers": 0, "shuffle_window": 1, "cache": None, "val_batch_size": 2},
}


def build(train: str, val: object, **options: object) -> WholeImageData:
    data = WholeImageData(train, val, **{**OPTIONS, **options})
    data.setup_stream(batch_size=2, epoch_size=4, num_batches=2)
    return data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images with masks, and fp32 maps of them at 64 pixels from timm's smallest network."""
    root = tmp_path_factory.mktemp("maps")
    images, val = write_sa1b_folder(root / "images", 6), write_sa1b_folder(root / "val", 3, first=50)
    write_cache(root / "cache", images, val)
    return images, root / "cache"


def write_cache(folder: Path, images: Path, val: Path) -> None:
    """As from the command line."""
    options = ["cache.kind=maps", "cache.map_size=64", f"cache.path={folder}", "data=images_folder"]
    options += [f"data.root={images}", f"data.val={val}", "command=write"]
    cache.write(cache.Job(compose_config([*TINY, *TEACHER, *CACHE_OPTIONS, *options], name="cache")))


def test_tokens_that_show_an_image_are_those_of_the_cache() -> None:
    sizes = [(48, 64), (64, 33), (10, 64), (64, 64), (1, 64)]
    cells = content_cells(torch.tensor(sizes), 64, (4, 4))
    heads = np.zeros(len(sizes), dtype=HEAD)
    heads["size"], heads["valid"] = sizes, True
    views = ViewsToCache(None, image_size=64, crops=None, seed=0, whole=True)
    assert torch.equal(cells, views.valid_tokens(heads, (4, 4)))
    assert cells.sum(1).tolist() == [12, 12, 4, 16, 4]


def test_maps_come_back_as_the_teacher_gave_them(made) -> None:
    """The map of the very pixels, padding and all, at the grid it was written in and, by area means, at a coarser."""
    images, folder = made
    data, teacher = build(str(images), None, cache=Cache(str(folder))), CachedTeacher(str(folder))
    batch = data.on_after_batch_transfer(data.train_set().__getitems__([0, 1]), 0)
    network = cache.Job(
        compose_config([*TINY, *TEACHER, *CACHE_OPTIONS, "command=write", "cache.path=x"], name="cache")
    )
    expected = network.running.ask(batch["image"])
    torch.testing.assert_close(teacher(batch), expected, rtol=1e-5, atol=1e-5)
    small = build(str(images), None, cache=Cache(str(folder)), image_size=32)
    batch = small.on_after_batch_transfer(small.train_set().__getitems__([0, 1]), 0)
    means = expected.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(teacher(batch), means, rtol=1e-5, atol=1e-5)


def test_a_batch_is_a_function_of_its_positions(made) -> None:
    data = build(str(made[0]), None)
    batch, again = (data.train_set().__getitems__([2, 5]) for _ in range(2))
    assert batch["image"].shape == (2, 3, 64, 64) and batch["noise"].shape[:2] == (2, 3)
    assert all(torch.equal(batch[name], again[name]) for name in ("image", "noise", "input_size", "position"))
    one = data.train_set().__getitems__([5])
    assert torch.equal(one["image"][0], batch["image"][1]) and torch.equal(one["noise"][0], batch["noise"][1])
    ready = data.on_after_batch_transfer(batch, 0)
    assert not ready["image"][:, :, 48:].any() and ready["image"][:, :, :48].any()


def test_validation_images_with_and_without_masks(made, tmp_path) -> None:
    plain, coco = write_folder(tmp_path / "plain", 3), write_coco(tmp_path / "coco", 3)
    tars = write_sa1b_tars(tmp_path / "tars", [2])
    val = {"plain": str(plain), "coco": str(coco), "folder": str(made[0]), "tar": tars[0]}
    data = build(str(made[0]), val)
    for name in val:
        batch = data.val_set(name).__getitems__([0, 1, -1])
        assert batch["image_valid"].tolist() == [True, True, False]
        assert batch["object_valid"].any() == (name != "plain") and batch["place_noise"][:2].any()
        assert data.knows_teacher(name)


def test_a_cache_is_refused_where_it_does_not_fit(made, tmp_path) -> None:
    images, folder = made
    with pytest.raises(ValueError, match="photos"):
        build(str(write_sa1b_folder(tmp_path / "other", 4)), None, cache=Cache(str(folder)))
    with pytest.raises(ValueError, match="whose images are padded"):
        build(str(images), None, cache=Cache(str(folder)), resize_mode="stretch")
    data = build(str(images), {"a": str(images), "b": str(images)}, cache=Cache(str(folder)))
    assert not data.knows_teacher("a")  # which of several it was written for is not known


def test_maps_of_other_pixels_are_refused(made, tmp_path) -> None:
    images, folder = made
    shutil.copytree(folder, tmp_path / "old")
    manifest = tmp_path / "old" / "train" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(ValueError, match=r"version: 1 in the cache, 2 now .*write the cache again"):
        build(str(images), None, cache=Cache(str(tmp_path / "old")))


def test_broken_images_and_changed_ones_are_replaced(made, tmp_path) -> None:
    root = write_sa1b_folder(tmp_path / "images", 4)
    write_cache(tmp_path / "cache", root, root)
    (root / "sa_1.jpg").write_bytes(encode(draw_image(99)))
    (root / "sa_2.jpg").write_bytes(b"no image")
    data = build(str(root), str(root), cache=Cache(str(tmp_path / "cache")))
    batch = data.train_set().__getitems__([0, 1, 2, 3])
    reasons = {Path(where).name: why for where, why in batch["broken"]}
    assert reasons.keys() == {"sa_1.jpg", "sa_2.jpg"} and "changed" in reasons["sa_1.jpg"]
    assert len(batch["image"]) == 4 and batch["image"].flatten(1).any(1).all()
    assert data.val_set("").__getitems__([0, 1, 2, 3])["image_valid"].tolist() == [True, False, False, True]
