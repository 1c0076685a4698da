"""The teacher cache from its commands to training: exact, restartable, and never used where it does not fit."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from caches import OPTIONS, TEACHER, cache_says, flip_byte, photo_overrides, run_cache, start_cache
from conftest import draw_photo, encode, write_folder, write_shards
from hydra.utils import instantiate
from runs import TINY, compose_config, run_pretrain
from safetensors.torch import load_file
from test_faults import explain
from test_resume import read_record

from sami.cache import __main__ as cache
from sami.cache.manifest import read_manifest, record_format
from sami.entry import explain_errors
from sami.methods.logs import read_table
from sami.methods.preemption import EXIT_REQUEUE


def losses(run: Path) -> list[float]:
    return [value for _, name, value in read_table(run / "metrics.csv") if name in ("train/loss", "val/loss")]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("view*.tar"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Photos and a complete fp32 cache of two views of each; tests that change it take a copy."""
    root = tmp_path_factory.mktemp("cache")
    data = photo_overrides(root)
    assert run_cache("write", [*data, f"cache.path={root}/targets"]) == 0
    return data, root / "targets"


@pytest.fixture
def copied(made: tuple[list[str], Path], tmp_path: Path) -> tuple[list[str], Path]:
    """The same photos, and a copy of the cache."""
    shutil.copytree(made[1], tmp_path / "targets")
    return made[0], tmp_path / "targets"


def cached(path: Path) -> list[str]:
    return ["teacher=cached", f"teacher.path={path}"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_online_and_cached_training_are_the_same_bit_for_bit(
    made: tuple[list[str], Path], tmp_path: Path, num_workers: int
) -> None:
    data = [*made[0], f"data.num_workers={num_workers}", "schedule.epochs=4"]
    record = "+callbacks.recorder={{_target_: runs.Recorder, path: {}}}"
    online = [*data, *TEACHER, "data.num_views=2", record.format(tmp_path / "online.csv")]
    assert run_pretrain(tmp_path / "online", online) == 0
    assert run_pretrain(tmp_path / "cached", [*data, *cached(made[1]), record.format(tmp_path / "cached.csv")]) == 0
    seen = read_record(tmp_path / "online.csv")
    assert len(seen) == 24  # 27 photos: 4 epochs of 3 steps of 2 batches
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
    data.set_stream(batch_size=27, epoch_size=27, num_batches=3)
    views = data.train_views()
    epochs = []
    for epoch in range(3):
        batch = views.__getitems__(list(range(27 * epoch, 27 * epoch + 27)))
        places = [views.order.locate(position) for position in batch["position"].tolist()]
        epochs.append(dict(zip(places, batch["image"], strict=True)))
    assert all(torch.equal(epochs[0][place], epochs[2][place]) for place in epochs[0])
    num_same = sum(torch.equal(epochs[0][place], epochs[1][place]) for place in epochs[0])
    assert num_same == (0 if num_views is None else 27)


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_write_goes_on(made: tuple[list[str], Path], tmp_path: Path, number: signal.Signals) -> None:
    slow = [*made[0], f"cache.path={tmp_path}/cut", "teacher.name=vit_base_patch16_224"]
    process = start_cache("write", slow, log=tmp_path / "log")
    wait_until(lambda: len(list((tmp_path / "cut" / "train").glob("*.json"))) >= 3)  # a recipe and two notes
    os.kill(process.pid, number)
    process.join()
    if number == signal.SIGKILL:
        assert process.exitcode == -signal.SIGKILL
    else:
        assert process.exitcode == EXIT_REQUEUE and "the same command continues" in (tmp_path / "log").read_text()
    train = tmp_path / "cut" / "train"
    assert not (train / "manifest.json").exists()
    shards = [note.with_suffix(".tar") for note in train.glob("view*.json")]
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert 2 <= len(before) < 12
    assert run_cache("write", slow) == 0
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before
    assert not list(train.glob(".*"))
    assert run_cache("write", [*slow, f"cache.path={tmp_path}/whole"]) == 0
    assert shard_bytes(tmp_path / "cut") == shard_bytes(tmp_path / "whole")
    manifests = [(tmp_path / run / "train" / "manifest.json").read_text() for run in ("cut", "whole")]
    assert manifests[0] == manifests[1]


def test_two_processes_write_what_one_would(made: tuple[list[str], Path], tmp_path: Path) -> None:
    options = [*made[0], f"cache.path={tmp_path}/shared"]
    processes = [start_cache("write", options, environment={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    assert shard_bytes(tmp_path / "shared") == shard_bytes(made[1])
    for split in ("train", "val"):
        texts = [(folder / split / "manifest.json").read_text() for folder in (tmp_path / "shared", made[1])]
        assert texts[0] == texts[1]


def test_one_share_alone_is_no_cache(made: tuple[list[str], Path], tmp_path: Path) -> None:
    process = start_cache(
        "write", [*made[0], f"cache.path={tmp_path}/half"], environment={"RANK": "1", "WORLD_SIZE": "2"}
    )
    process.join(100)
    assert process.exitcode == 0
    with pytest.raises(ValueError, match=r"unfinished cache, 6 shards of it: .* again"):
        read_manifest(tmp_path / "half" / "train")


def test_views_can_be_added(copied: tuple[list[str], Path]) -> None:
    data, path = copied
    before = shard_bytes(path)
    assert run_cache("write", [*data, f"cache.path={path}", "cache.num_views=3"]) == 0
    after = shard_bytes(path)
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 6
    assert read_manifest(path / "train")["num_views"] == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_keeps_what_is_written(made: tuple[list[str], Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        options = [*made[0], f"cache.path={disk}", "teacher.name=vit_base_patch16_224"]
        for command in ("plan", "write"):
            code, said = cache_says(command, options, tmp_path)
            assert code == 2 and "are still to be written" in said
        assert os.listdir(disk) == []
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        process = start_cache("write", options, log=tmp_path / "log")
        wait_until(lambda: len(list((disk / "train").glob("view*.json"))) >= 2)
        with pytest.raises(OSError), open(disk / "filler", "wb") as file:  # somebody else takes the rest
            while True:
                file.write(bytes(4096))
                file.flush()
        process.join(100)
        assert process.exitcode == 2
        assert f"the disk of {disk}/train is full" in (tmp_path / "log").read_text()
        (disk / "filler").unlink()
        kept = shard_bytes(disk)
        assert len(kept) >= 2 and not list((disk / "train").glob(".*"))
        assert run_cache("write", options) == 0
        assert kept.items() <= shard_bytes(disk).items()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_belongs_to_its_recipe(copied: tuple[list[str], Path], tmp_path: Path) -> None:
    data, path = copied
    other = ["data.flip=0.1", "cache.storage=int8", "seed=4"]
    code, said = cache_says("write", [*data, f"cache.path={path}", *other], tmp_path)
    assert code == 2
    for line in ("storage: fp32 in the cache, int8 now", "transform.flip: 0.5 in the cache, 0.1 now", "seed: 0 in"):
        assert line in said


MISFITS = [
    (["model.image_size=48"], ["image_size: 32 in the cache, 48 now", "grid: [2, 2] in the cache, [3, 3] now"]),
    (["data.scale=[0.5,1]"], ["transform.scale: [0.2, 1.0] in the cache, [0.5, 1.0] now"]),
    (["data.train={tmp}/others/train-000.tar", "data.val=null"], ["photos.count: 27 in the cache, 20 now"]),
    (["teacher.name=sam_vit_h"], ["teacher.name=sam_vit_h, but the cache", "holds targets of test_vit"]),
    (["data.num_views=3"], ["data.num_views=3, but the cache", "holds 2"]),
    (["teacher.path={tmp}/nowhere"], ["{tmp}/nowhere/train holds no cache: make one with python -m sami.cache write"]),
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
    error = explain([*made[0], *cached(made[1]), f"run_dir={tmp_path}/run", *given], capsys)
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
    error = explain([*data, *cached(path), f"run_dir={path}/run"], capsys)
    assert f"the cache {path}/val does not fit" in error and message in error


def test_val_is_stored_in_the_components_of_train(copied: tuple[list[str], Path], tmp_path: Path) -> None:
    data, path = copied
    options = [*data, f"cache.path={path}-pca", "cache.channels=8"]
    assert run_cache("write", options) == 0
    recipes = [json.loads(Path(f"{path}-pca", split, "recipe.json").read_text()) for split in ("train", "val")]
    assert recipes[0]["basis"] == recipes[1]["basis"]
    recipes[0]["basis"][0][0] += 1
    Path(f"{path}-pca", "train", "recipe.json").write_text(json.dumps(recipes[0]))
    code, said = cache_says("write", options, tmp_path)
    assert code == 2 and "stores other principal components than the training split" in said


BAD_OPTIONS = [
    ("cache.storage=int4", "cache.storage='int4': choose fp32, fp16, int8"),
    ("cache.kind=view", "cache.kind='view': choose views or maps"),
    ("cache.precision=64", "cache.precision=64: choose"),
    ("cache.channels=0", "cache.channels=0: give a number from 1"),
    ("cache.channels=65", "cache.channels=65: targets have 64"),
    ("cache.num_views=1", "holds 2 views, cache.num_views=1 would drop some"),
    ("teacher=pixels", "targets made of pixels need no cache"),
    ("teacher=cached", "teacher=cached is what a cache is used with"),
    ("cache.path=/proc/nowhere", "/proc/nowhere"),
]


@pytest.mark.parametrize(("option", "message"), BAD_OPTIONS)
def test_options_that_cannot_be(
    made: tuple[list[str], Path], option: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    own = [f"~{name.split('=')[0]}" for name in TEACHER[1:]] if option.startswith("teacher=") else []
    overrides = ["command=write", *TINY, *(TEACHER if not own else []), *OPTIONS, *made[0], f"cache.path={made[1]}"]
    with pytest.raises(SystemExit) as stop, explain_errors():
        cache.write(cache.Job(compose_config([*overrides, option], name="cache")))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_repaired_cache_is_still_the_same(copied: tuple[list[str], Path], tmp_path: Path) -> None:
    """A run goes on after a shard was made again, and after views were added that it does not use."""
    data, path = copied
    run = [*data, *cached(path), "+callbacks.kill={_target_: runs.KillAt, step: 5}"]
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
    assert message in explain([*data, *cached(path), f"run_dir={path}/run"], capsys)


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
    assert f"{shard}, record 3, key photo_0008: its record does not match its checksum" in said

    run = tmp_path / "run"
    assert run_pretrain(run, [*data, *cached(path), "callbacks.broken_photos.max_rate=0.5"]) == 0
    with open(run / "broken_photos.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photo"].split(": ")[1] for row in rows] == ["photo_0008"]
    assert f"cache {shard}, record 3: its record does not match its checksum" in rows[0]["reason"]


def test_changed_photos_are_not_paired_with_old_targets(made: tuple[list[str], Path], tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 20)
    data = ["data=image_folder", f"data.root={photos}", f"cache.path={tmp_path}/targets"]
    assert run_cache("write", data) == 0
    changed = sorted(photos.rglob("*.jpg"))[7]
    changed.write_bytes(encode(draw_photo(99)))
    code, said = cache_says("verify", [*data, "verify_photos=20"], tmp_path)
    assert code == 2 and f"{changed}, view 1: the image has changed" in said
    run = tmp_path / "run"
    assert run_pretrain(run, [*data[:2], *cached(tmp_path / "targets"), "callbacks.broken_photos.max_rate=0.5"]) == 0
    assert str(changed) in (run / "broken_photos.csv").read_text()
    for path in photos.rglob("*.jpg"):
        path.write_bytes(encode(draw_photo(100 + len(path.name))))
    assert run_pretrain(tmp_path / "all", [*data[:2], *cached(tmp_path / "targets")]) != 0


def test_photos_broken_at_writing_are_skipped_alike(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 20)
    broken = sorted(photos.rglob("*.jpg"))[3]
    broken.write_bytes(b"no image")
    data = ["data=image_folder", f"data.root={photos}"]
    assert run_cache("write", [*data, f"cache.path={tmp_path}/targets"]) == 0
    skipped = read_manifest(tmp_path / "targets" / "train")["shards"]["view01-000000.tar"]["skipped"]
    assert list(skipped) == [str(broken)]
    rate = "callbacks.broken_photos.max_rate=0.5"
    assert run_pretrain(tmp_path / "cached", [*data, rate, *cached(tmp_path / "targets")]) == 0
    assert run_pretrain(tmp_path / "online", [*data, rate, *TEACHER, "data.num_views=2"]) == 0
    assert losses(tmp_path / "cached") == losses(tmp_path / "online")

    for path in sorted(photos.rglob("*.jpg"))[:11]:
        path.write_bytes(b"no image")
    code, said = cache_says("write", [*data, f"cache.path={tmp_path}/hopeless"], tmp_path)
    assert code == 2 and "photos cannot be used, more than cache.max_broken_rate=0.01" in said


def test_verify_speaks_of_photos_that_were_or_became_broken(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 20)
    first, second = sorted(photos.rglob("*.jpg"))[3:5]
    whole = first.read_bytes()
    first.write_bytes(b"no image")
    data = ["data=image_folder", f"data.root={photos}", f"cache.path={tmp_path}/targets", "verify_photos=20"]
    code, said = cache_says("write", data, tmp_path)
    assert code == 0 and f"2 targets are missing, the first of {first}" in said
    assert run_cache("verify", data) == 0
    first.write_bytes(whole)
    code, said = cache_says("verify", data, tmp_path)
    assert code == 2 and "it was broken when the cache was written, and can be read now. Delete" in said
    first.write_bytes(b"no image")
    second.write_bytes(b"no image")
    code, said = cache_says("verify", data, tmp_path)
    assert code == 2 and "the photo cannot be read any more" in said


def test_verify_asks_for_no_more_views_than_there_are(made: tuple[list[str], Path], tmp_path: Path) -> None:
    code, said = cache_says("verify", [*made[0], f"cache.path={made[1]}", "cache.num_views=3"], tmp_path)
    assert code == 2 and "holds 2 views, not cache.num_views=3" in said


def test_verify_knows_another_teacher(made: tuple[list[str], Path], tmp_path: Path) -> None:
    code, said = cache_says("verify", [*made[0], f"cache.path={made[1]}", "teacher.name=test_vit2"], tmp_path)
    assert code == 2 and "teacher.name: test_vit in the cache, test_vit2 now" in said and "teacher_weights" in said


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


def test_maps_of_whole_photos(made: tuple[list[str], Path], tmp_path: Path) -> None:
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


def test_commands_are_explained() -> None:
    result = subprocess.run([sys.executable, "-m", "sami.cache", "wirte"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "python -m sami.cache plan|write|verify ...: wirte given" in result.stderr
