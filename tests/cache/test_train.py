"""Training from a cache: the same as with the teacher online, and never on a cache that does not fit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from caches import TEACHER, cache_says, cached, losses, run_cache
from conftest import draw_image, encode, write_folder, write_shards
from hydra.utils import instantiate
from safetensors.torch import load_file
from test_resume import read_record
from training_runs import TINY, compose_config, explain, run_pretrain

from sami.cache.manifest import read_manifest


@pytest.mark.parametrize("num_workers", [0, 2])
def test_online_and_cached_training_are_the_same_bit_for_bit(
    made: tuple[list[str], Path], tmp_path: Path, num_workers: int
) -> None:
    data = [*made[0], f"data.num_workers={num_workers}", "schedule.epochs=4"]
    record = "+callbacks.recorder={{_target_: training_runs.Recorder, path: {}}}"
    online = [*data, *TEACHER, "data.num_views=2", record.format(tmp_path / "online.csv")]
    assert run_pretrain(tmp_path / "online", online) == 0
    assert run_pretrain(tmp_path / "cached", [*data, *cached(made[1]), record.format(tmp_path / "cached.csv")]) == 0
    seen = read_record(tmp_path / "online.csv")
    assert len(seen) == 24  # 27 images: 4 epochs of 3 steps of 2 batches
    assert read_record(tmp_path / "cached.csv") == seen
    assert losses(tmp_path / "online") == losses(tmp_path / "cached")
    weights = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("online", "cached")]
    torch.testing.assert_close(weights[0]["state_dict"], weights[1]["state_dict"], rtol=0, atol=0)


@pytest.mark.parametrize(("storage", "bound"), [("int8", 2e-3), ("fp16", 1e-4)])
def test_smaller_storage_trains_alike(made: tuple[list[str], Path], tmp_path: Path, storage: str, bound: float) -> None:
    assert run_cache("write", [*made[0], f"cache.path={tmp_path}/small", f"cache.storage={storage}"]) == 0
    for run, path in (("exact", made[1]), ("small", tmp_path / "small")):
        assert run_pretrain(tmp_path / run, [*made[0], *cached(path)]) == 0
    exact, small = losses(tmp_path / "exact"), losses(tmp_path / "small")
    assert small == pytest.approx(exact, rel=bound) and small != exact
    stated = read_manifest(tmp_path / "small" / "train")["error"]
    assert 0.999 < stated["worst_cosine"] <= stated["cosine"] < 1 + 1e-6


@pytest.mark.parametrize("num_views", [None, 1])
def test_epochs_take_turns_with_views(made: tuple[list[str], Path], num_views: int | None) -> None:
    """The third epoch sees the pictures of the first, the second others; with one view all are alike."""
    data = instantiate(
        compose_config([*TINY, *made[0], *cached(made[1]), f"data.num_views={num_views or 'null'}"]).data
    )
    data.setup_stream(batch_size=27, epoch_size=27, num_batches=3)
    views = data.train_set()
    epochs = []
    for epoch in range(3):
        batch = views.__getitems__(list(range(27 * epoch, 27 * epoch + 27)))
        places = [views.order.locate(position) for position in batch["position"].tolist()]
        epochs.append(dict(zip(places, batch["image"], strict=True)))
    assert all(torch.equal(epochs[0][place], epochs[2][place]) for place in epochs[0])
    num_same = sum(torch.equal(epochs[0][place], epochs[1][place]) for place in epochs[0])
    assert num_same == (0 if num_views is None else 27)


MISFITS = [
    (["model.image_size=48"], ["image_size: 32 in the cache, 48 now", "grid: [2, 2] in the cache, [3, 3] now"]),
    (["data.scale=[0.5,1]"], ["transform.scale: [0.2, 1.0] in the cache, [0.5, 1.0] now"]),
    (["data.train={tmp}/others/train-000.tar", "data.val=null"], ["photos.count: 27 in the cache, 20 now"]),
    (["teacher.name=sam_vit_h"], ["name=sam_vit_h, but the cache", "holds targets of test_vit"]),
    (["data.num_views=3"], ["num_views=3, but the cache", "holds 2"]),
    (["teacher.path={tmp}/nowhere"], ["{tmp}/nowhere/train holds no cache: make one with `python -m sami.cache write"]),
]


@pytest.mark.parametrize(("overrides", "messages"), MISFITS)
def test_a_cache_that_does_not_fit_is_refused(
    made: tuple[list[str], Path],
    tmp_path: Path,
    overrides: list[str],
    messages: list[str],
    capsys: pytest.CaptureFixture,
) -> None:
    write_shards(tmp_path / "others", [20])
    given = [override.format(tmp=tmp_path) for override in overrides]
    error = explain("pretrain", [*made[0], *cached(made[1]), f"run_dir={tmp_path}/run", *given], capsys)
    for message in messages:
        assert message.format(tmp=tmp_path) in error


def rewrite_val(data: list[str], path: Path, *options: str) -> None:
    shutil.rmtree(path / "val")
    assert run_cache("write", [*data, f"cache.path={path}-other", *options]) == 0
    shutil.copytree(f"{path}-other/val", path / "val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cache.storage=int8"], "storage: int8 in the cache, fp32 now"),
        (["teacher.name=test_vit2"], "teacher.name: test_vit2 in the cache, test_vit now"),
        (["cache.channels=8"], "basis: [["),
    ],
)
def test_both_splits_must_be_of_one_kind(
    copied: tuple[list[str], Path], options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    data, path = copied
    rewrite_val(data, path, *options)
    error = explain("pretrain", [*data, *cached(path), f"run_dir={path}/run"], capsys)
    assert f"the cache {path}/val does not fit" in error and message in error


def test_a_repaired_cache_is_still_the_same(copied: tuple[list[str], Path], tmp_path: Path) -> None:
    """A run goes on after a shard was made again, and after views were added that it does not use."""
    data, path = copied
    run = [*data, *cached(path), "+callbacks.kill={_target_: training_runs.KillAt, step: 5}"]
    assert run_pretrain(tmp_path / "run", run) == -signal.SIGKILL
    (path / "train" / "view00-000001.tar").unlink()
    assert run_cache("write", [*data, f"cache.path={path}", "cache.num_views=3"]) == 0
    assert run_pretrain(tmp_path / "run", [*data, *cached(path)]) == 1  # three views would take turns now
    assert run_pretrain(tmp_path / "run", [*data, *cached(path), "data.num_views=2"]) == 0


def change_json(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda train: (train / "view01-000002.tar").unlink(), "view01-000002.tar is missing"),
        (lambda train: os.truncate(train / "view00-000001.tar", 5000), "view00-000001.tar has 5000 bytes instead of"),
        (
            lambda train: change_json(train / "manifest.json", format=0),
            "has format 0, this version reads and writes format 1",
        ),
        (lambda train: (train / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda train: shutil.rmtree(train.parent / "val"), "val holds no cache"),
    ],
)
def test_a_damaged_cache_is_named(
    copied: tuple[list[str], Path], damage: object, message: str, capsys: pytest.CaptureFixture
) -> None:
    data, path = copied
    damage(path / "train")
    assert message in explain("pretrain", [*data, *cached(path), f"run_dir={path}/run"], capsys)


def test_changed_images_are_not_paired_with_old_targets(made: tuple[list[str], Path], tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 20)
    data = ["data=images_folder", f"data.root={images}", f"cache.path={tmp_path}/targets"]
    assert run_cache("write", data) == 0
    changed = sorted(images.rglob("*.jpg"))[7]
    changed.write_bytes(encode(draw_image(99)))
    code, said = cache_says("verify", [*data, "verify_images=20"], tmp_path)
    assert code == 2 and f"{changed}, view 1: the image has changed" in said
    run = tmp_path / "run"
    assert run_pretrain(run, [*data[:2], *cached(tmp_path / "targets"), "callbacks.broken_images.max_rate=0.5"]) == 0
    assert str(changed) in (run / "broken_images.csv").read_text()
    for path in images.rglob("*.jpg"):
        path.write_bytes(encode(draw_image(100 + len(path.name))))
    assert run_pretrain(tmp_path / "all", [*data[:2], *cached(tmp_path / "targets")]) != 0


def test_images_broken_at_writing_are_skipped_alike(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 20)
    broken = sorted(images.rglob("*.jpg"))[3]
    broken.write_bytes(b"no image")
    data = ["data=images_folder", f"data.root={images}"]
    assert run_cache("write", [*data, f"cache.path={tmp_path}/targets"]) == 0
    skipped = read_manifest(tmp_path / "targets" / "train")["shards"]["view01-000000.tar"]["skipped"]
    assert list(skipped) == [str(broken)]
    rate = "callbacks.broken_images.max_rate=0.5"
    assert run_pretrain(tmp_path / "cached", [*data, rate, *cached(tmp_path / "targets")]) == 0
    assert run_pretrain(tmp_path / "online", [*data, rate, *TEACHER, "data.num_views=2"]) == 0
    assert losses(tmp_path / "cached") == losses(tmp_path / "online")

    for path in sorted(images.rglob("*.jpg"))[:11]:
        path.write_bytes(b"no image")
    code, said = cache_says("write", [*data, f"cache.path={tmp_path}/hopeless"], tmp_path)
    assert code == 2 and "images cannot be used, more than max_broken_rate=0.01" in said


def test_standardised_targets_come_from_the_manifest_and_leave_with_the_head(
    made: tuple[list[str], Path], tmp_path: Path
) -> None:
    assert run_pretrain(tmp_path / "run", [*made[0], *cached(made[1]), "method.standardize_target=true"]) == 0
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    known = read_manifest(made[1] / "train")["statistics"]
    assert state["statistics.num_tokens"] == known["tokens"] == 2 * 27 * 4
    torch.testing.assert_close(state["statistics.mean"], torch.tensor(known["mean"]))
    torch.testing.assert_close(state["statistics.std"], torch.tensor(known["variance"]).sqrt())
    student = load_file(tmp_path / "run" / "student.safetensors")
    tokens = torch.randn(5, 64)
    standard = tokens @ state["student.head.weight"].T + state["student.head.bias"]
    raw = tokens @ student["head.weight"].T + student["head.bias"]
    torch.testing.assert_close(raw, standard * state["statistics.std"] + state["statistics.mean"], rtol=1e-4, atol=1e-4)


def test_maps_of_whole_images(made: tuple[list[str], Path], tmp_path: Path) -> None:
    """One map serves any crop, approximately, and `verify` says how nearly."""
    maps = [*made[0], f"cache.path={tmp_path}/maps", "cache.kind=maps", "cache.map_size=64", "cache.channels=16"]
    assert run_cache("write", maps) == 0
    code, said = cache_says("verify", maps, tmp_path)
    assert code == 0
    assert "crops as they are, 32 pixels: cosine 0." in said and "crops enlarged to 64 pixels: cosine 0." in said
    manifest = read_manifest(tmp_path / "maps" / "train")
    assert (manifest["grid"], manifest["channels"], manifest["num_views"]) == ([4, 4], 16, 1)
    assert run_pretrain(tmp_path / "run", [*made[0], *cached(tmp_path / "maps")]) == 0
    assert all(loss == loss for loss in losses(tmp_path / "run"))
