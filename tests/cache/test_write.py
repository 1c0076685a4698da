"""Writing a cache: what an interruption leaves, what others write, and what cannot be written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from caches import (
    OPTIONS,
    TEACHER,
    cache_says,
    run_cache,
    shard_bytes,
    start_cache,
)
from training_runs import TINY, compose_config

from sami.cache import __main__ as cache
from sami.cache.manifest import read_manifest
from sami.cli import explain_errors
from sami.preemption import EXIT_REQUEUE


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
    ("cache.storage=int4", "storage='int4': choose fp32, fp16, int8"),
    ("cache.kind=view", "kind='view': choose views or maps"),
    ("cache.precision=64", "precision=64: choose"),
    ("cache.channels=0", "channels=0: give a number from 1"),
    ("cache.channels=65", "channels=65: targets have 64"),
    ("cache.num_views=1", "holds 2 views, num_views=1 would drop some"),
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
