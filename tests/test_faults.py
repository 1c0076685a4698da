"""Mistakes and broken things that users bring: each is answered with a sentence that says what and where."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_folder, write_shards
from hydra.utils import instantiate
from training_runs import TINY, compose_config, run_pretrain, start_pretrain

from sami.cli import explain_errors, flatten
from sami.preemption import EXIT_REQUEUE

ROOT = Path(__file__).parents[1]


def explain(overrides: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the command line prints for this configuration."""
    from sami.pretrain import pretrain

    with pytest.raises(SystemExit) as stop, explain_errors():
        pretrain(compose_config([*TINY, *overrides]))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=images_folder", "data.root={tmp}/nowhere"], "root={tmp}/nowhere is not a folder"),
        (["data=images_folder", "data.root={tmp}/empty"], "no image below {tmp}/empty"),
        (["data=images_shards", "data.train={tmp}/none.tar"], "1 of the 1 shards"),
        (["data=images_shards", "data.train={tmp}/cut.tar"], "{tmp}/cut.tar cannot be read"),
        (["data=images_shards", "data.train={tmp}/empty.tar"], "{tmp}/empty.tar is an empty shard"),
        (["data=images_folder", "data.root={tmp}/few"], "3 images do not fill one global batch of 8"),
        (
            ["data=images_folder", "data.root={tmp}/photos", "method.mask_ratio=0.9"],
            "mask_ratio=0.9 keeps 0 of 4 tokens",
        ),
        (["data=images_folder", "data.root={tmp}/photos", "model.image_size=40"], "not a multiple of patch_size=16"),
        (["data=images_folder", "data.root={tmp}/photos", "method.loss_tokens=visible"], "loss_tokens='visible'"),
        (["data=images_folder", "data.root={tmp}/photos", "decoder.num_heads=7"], "does not divide into num_heads=7"),
        (["data=images_folder", "data.root={tmp}/photos", "schedule.batch_size=0"], "batch_size=0 cannot be"),
        (
            ["data=images_folder", "data.root={tmp}/photos", "method.mask_ratio=0"],
            "mask_ratio=0 hides none of 4 tokens",
        ),
        (["data=images_folder"], "data.root"),
        (
            ["data=images_folder", "data.root={tmp}/photos", "teacher=sam_vit_b", "teacher.weights={tmp}/other.pth"],
            "{tmp}/other.pth",
        ),
    ],
)
def test_mistakes_are_explained(
    tmp_path: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    write_folder(tmp_path / "photos", 20)
    write_folder(tmp_path / "few", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.tar").write_bytes(Path(write_shards(tmp_path / "shards", [5])[0]).read_bytes()[:3000])
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    overrides = [override.format(tmp=tmp_path) for override in [*overrides, "run_dir={tmp}/run"]]
    printed = explain(overrides, capsys)
    assert message.format(tmp=tmp_path) in printed and "Traceback" not in printed


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explain_errors():
        raise ZeroDivisionError


def test_command_line_exits_with_2_and_one_sentence(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sami.pretrain",
        "data=images_folder",
        f"data.root={tmp_path}",
        f"run_dir={tmp_path}/r",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "error: no image below" in result.stderr and "Traceback" not in result.stderr


def test_broken_photos_are_listed_once_and_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos", 43)
    broken = root / "class_1" / "photo_003.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    data = ["data=images_folder", f"data.root={root}", f"data.val={root}", "callbacks.broken_images.max_rate=0.5"]
    assert run_pretrain(tmp_path / "run", data) == 0
    with open(tmp_path / "run" / "broken_images.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == str(broken) and row["reason"]
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["callbacks"]["BrokenImages"]
    assert state["broken"] >= 1 and state["loaded"] == 120 + state["broken"]


def test_too_many_broken_photos_stop_the_run(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos", 43)
    for path in sorted(root.rglob("*.jpg"))[::3]:
        path.write_bytes(b"no photo")
    assert run_pretrain(tmp_path / "run", ["data=images_folder", f"data.root={root}"]) == 1
    assert len((tmp_path / "run" / "broken_images.csv").read_text().splitlines()) >= 10


def test_a_signal_to_workers_too_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Schedulers signal every process of a job, the loader's among them."""
    data = ["data=images_folder", f"data.root={write_folder(tmp_path / 'photos', 43)}", "data.num_workers=2"]
    process = start_pretrain(
        tmp_path / "run", [*data, "schedule.epochs=100000", "checkpoint_every_n_steps=100000"], own_group=True
    )
    table = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 90
    while not (table.exists() and table.read_text().count("train/loss") > 3):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.1)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    for worker in workers:
        os.kill(int(worker), signal.SIGTERM)
    seen = table.read_text().count("train/loss")
    while table.read_text().count("train/loss") < seen + 30:  # more than was loaded ahead
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGUSR1)
    process.join(60)
    assert process.exitcode == EXIT_REQUEUE and (tmp_path / "run" / "last.ckpt").exists()


def test_flatten_names_leaves() -> None:
    cfg = compose_config([])
    flat = flatten(cfg, without={"hydra", "data", "method.encoder"})
    assert flat["model.size"] == "tiny" and flat["method.betas"] == [0.9, 0.95]
    assert not any(name.startswith(("data.", "method.encoder")) for name in flat)
    assert instantiate(cfg.model).size == "tiny"
