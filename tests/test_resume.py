"""A run that was killed and continued is the run that was never killed, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from conftest import write_folder, write_shards
from safetensors.torch import load_file
from same_runs import check_cut_run, kill_at, read_checkpoint, read_record, recorder
from training_runs import run_pretrain, start_pretrain

from sami.preemption import EXIT_REQUEUE
from sami.training import hold_folder


def data_overrides(root: Path, kind: str, num_workers: int) -> list[str]:
    if kind == "folder":
        data = ["data=images_folder", f"data.root={write_folder(root / 'images', 43)}"]
    else:
        write_shards(root / "shards", [9, 14, 3, 17])
        data = ["data=images_shards", f"data.train='{root}/shards/train-{{000..003}}.tar'", "data.shuffle_window=2"]
    return [*data, f"data.num_workers={num_workers}"]


@pytest.mark.parametrize(("kind", "num_workers"), [("shards", 0), ("shards", 2), ("folder", 0), ("folder", 2)])
def test_kill_9_and_continue(tmp_path: Path, kind: str, num_workers: int) -> None:
    data = data_overrides(tmp_path, kind, num_workers)
    whole, cut = check_cut_run("pretrain", tmp_path, data, killed=8, kept=6, steps=15)  # within the second epoch of 5
    backbones = [load_file(run / "backbone.safetensors") for run in (whole, cut)]
    torch.testing.assert_close(backbones[0], backbones[1], rtol=0, atol=0)


def test_finished_run_is_left_alone_and_backbone_loads_in_timm(tmp_path: Path) -> None:
    data = [*data_overrides(tmp_path, "folder", 0), "schedule.epochs=1", "schedule.warmup_epochs=0"]
    assert run_pretrain(tmp_path / "run", [*data, "model.image_size=224"]) == 0
    before = (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns
    assert run_pretrain(tmp_path / "run", [*data, "model.image_size=224"]) == 0
    assert (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns == before
    backbone = str(tmp_path / "run" / "backbone.safetensors")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, checkpoint_path=backbone)
    state = read_checkpoint(tmp_path / "run")["state_dict"]
    assert not any("teacher" in name for name in state)
    torch.testing.assert_close(model.norm.weight, state["student.encoder.norm.weight"], rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        timm.create_model("vit_small_patch16_224", num_classes=0, checkpoint_path=backbone)


def test_sigterm_writes_and_asks_to_be_queued_again(tmp_path: Path) -> None:
    data = [*data_overrides(tmp_path, "folder", 0), "checkpoint_every_n_steps=1000", "schedule.epochs=100000"]
    process = start_pretrain(tmp_path / "run", data)
    table = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 90
    while not (table.exists() and table.read_text().count("train/loss") > 3):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.1)
    process.terminate()
    process.join(60)
    assert process.exitcode == EXIT_REQUEUE
    assert read_checkpoint(tmp_path / "run")["global_step"] > 3


@pytest.mark.parametrize("damage", ["cut", "junk", "empty"])
def test_a_checkpoint_that_cannot_be_read_is_an_error(tmp_path: Path, damage: str) -> None:
    data = [*data_overrides(tmp_path, "folder", 0), "schedule.epochs=1"]
    assert run_pretrain(tmp_path / "run", [*data, kill_at(4)]) < 0
    path = tmp_path / "run" / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "junk": b"no checkpoint" * 99, "empty": b""}[damage])
    damaged = path.read_bytes()
    assert run_pretrain(tmp_path / "run", data) == 1
    assert path.read_bytes() == damaged


def test_another_recipe_is_refused_another_machine_is_not(tmp_path: Path) -> None:
    data = data_overrides(tmp_path, "folder", 0)
    assert run_pretrain(tmp_path / "run", [*data, kill_at(4)]) < 0
    assert run_pretrain(tmp_path / "run", [*data, "decoder.width=32"]) == 1
    # 4 accumulated batches instead of 2
    other = ["schedule.batch_size=2", "checkpoint_every_n_steps=4", recorder(tmp_path / "record.csv")]
    assert run_pretrain(tmp_path / "run", [*data, *other]) == 0
    seen = [row[2] for row in read_record(tmp_path / "record.csv")]
    assert seen == [str([first, first + 1]) for first in range(24, 120, 2)]
    assert read_checkpoint(tmp_path / "run")["global_step"] == 15


def test_one_process_trains_in_a_folder_and_a_killed_one_leaves_no_lock(tmp_path) -> None:
    """Not even while its forked children, as loading processes are, live on."""
    code = (
        "import os, sys, time; from pathlib import Path; from sami.training import hold_folder\n"
        "lock = hold_folder(Path(sys.argv[1])); child = os.fork()\n"
        "print(child, flush=True) if child else None\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        child = int(other.stdout.readline())
        try:
            with pytest.raises(ValueError, match=r"another process is training in .*run: wait for it, or give"):
                hold_folder(tmp_path / "run")
            other.kill()
            other.wait()
            hold_folder(tmp_path / "run").close()
        finally:
            other.kill()
            os.kill(child, signal.SIGKILL)
