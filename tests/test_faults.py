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
from masked_images import write_sa1b_folder
from training_runs import compose_config, explain, run_pretrain, start_pretrain

from sami.cli import explain_errors, flatten
from sami.models.build import build_sam, save_sam
from sami.preemption import EXIT_REQUEUE

ROOT = Path(__file__).parents[1]


MISTAKES = {  # what is given -> a part of what is said
    "pretrain": """
        data=images_folder data.root={tmp}/nowhere -> root={tmp}/nowhere is not a folder
        data=images_folder data.root={tmp}/empty -> no image below {tmp}/empty
        data=images_shards data.train={tmp}/none.tar -> 1 of the 1 shards
        data=images_shards data.train={tmp}/cut.tar -> {tmp}/cut.tar cannot be read
        data=images_shards data.train={tmp}/empty.tar -> {tmp}/empty.tar is an empty shard
        data=images_folder data.root={tmp}/few -> 3 images do not fill one global batch of 8
        data=images_folder -> data.root
        {images} method.mask_ratio=0.9 -> mask_ratio=0.9 keeps 0 of 4 tokens
        {images} method.mask_ratio=0 -> mask_ratio=0 hides none of 4 tokens
        {images} model.image_size=40 -> not a multiple of patch_size=16
        {images} method.loss_tokens=visible -> loss_tokens='visible'
        {images} decoder.num_heads=7 -> does not divide into num_heads=7
        {images} schedule.batch_size=0 -> batch_size=0 cannot be
        {images} teacher=sam_vit_b teacher.weights={tmp}/other.pth -> {tmp}/other.pth
    """,
    "finetune": """
        data.train={tmp}/none.tar -> 1 of the 1 shards
        data.train={tmp}/none.json -> COCO data needs a file and a folder
        {masks} model.image_size=40 -> image_size=40
        {masks} data.resize_mode=crop -> resize_mode='crop'
        {masks} model.resize_mode=pad data.resize_mode=stretch -> set both alike
        {masks} method.train_parts=[] -> train_parts=[]
        {masks} method.layer_decay=2 -> layer_decay=2
        {masks} model.decoder=efficient_sam -> protocol=points
        {masks} model.backbone={tmp}/none.pth -> none.pth
        {masks} model.backbone={tmp}/other.pth -> {tmp}/other.pth
        {masks} data.num_masks=0 -> num_masks=0
        {masks} schedule.global_batch_size=99 -> do not fill one global batch of 99
        seed=0 -> data.train
    """,
    "distill": """
        data.train={tmp}/none.tar -> 1 of the 1 shards
        {masks} model.image_size=40 -> image_size=40
        {masks} model.resize_mode=stretch data.resize_mode=pad -> set both alike
        {masks} students=[vit_x] -> students=['vit_x']
        {masks} students=vit_t -> students=[vit_t]
        {masks} teacher.checkpoint={tmp}/stretch.safetensors -> model.resize_mode=stretch
        {masks} +method.flavour=1 -> unexpected keyword argument 'flavour'
        {masks} decoder_checkpoint={tmp}/none.pth -> none.pth
        {masks} init={{timm/test_vit2:{tmp}/other.pth}} -> {tmp}/other.pth
        {masks} teacher=cached teacher.path={tmp}/none decoder_checkpoint=null -> holds no cache
        {masks} schedule.global_batch_size=99 -> do not fill one global batch of 99
        {masks} +experiment=distill/mobile_sam -> no default: teacher.path, decoder_checkpoint
    """,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Good and bad data by the names they have in `MISTAKES`."""
    folder = tmp_path_factory.mktemp("places")
    images, masks = write_folder(folder / "images", 20), write_sa1b_folder(folder / "masks", 5)
    write_folder(folder / "few", 3)
    (folder / "empty").mkdir()
    (folder / "cut.tar").write_bytes(Path(write_shards(folder / "shards", [5])[0]).read_bytes()[:3000])
    (folder / "empty.tar").write_bytes(bytes(10240))
    torch.save({"conv.weight": torch.zeros(3)}, folder / "other.pth")
    teacher = build_sam("timm/test_vit", image_size=64, resize_mode="stretch", decoder="sam")
    save_sam(teacher, folder / "stretch.safetensors")
    data = {"images": f"data=images_folder data.root={images}", "masks": f"data.train={masks}"}
    return {"tmp": str(folder), **data}


@pytest.mark.parametrize(
    ("command", "mistake"),
    [(command, line.strip()) for command, table in MISTAKES.items() for line in table.strip().splitlines()],
)
def test_mistakes_are_explained(
    tmp_path: Path, places: dict[str, str], command: str, mistake: str, capsys: pytest.CaptureFixture
) -> None:
    given, message = mistake.format(**places).split(" -> ")
    assert message in explain(command, [f"run_dir={tmp_path}/run", *given.split()], capsys)


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


def test_broken_images_are_listed_once_and_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 43)
    broken = root / "class_1" / "image_003.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    data = ["data=images_folder", f"data.root={root}", f"data.val={root}", "callbacks.broken_images.max_rate=0.5"]
    assert run_pretrain(tmp_path / "run", data) == 0
    with open(tmp_path / "run" / "broken_images.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == str(broken) and row["reason"]
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["callbacks"]["BrokenImages"]
    assert state["broken"] >= 1 and state["loaded"] == 120 + state["broken"]


def test_too_many_broken_images_stop_the_run(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 43)
    for path in sorted(root.rglob("*.jpg"))[::3]:
        path.write_bytes(b"no image")
    assert run_pretrain(tmp_path / "run", ["data=images_folder", f"data.root={root}"]) == 1
    assert len((tmp_path / "run" / "broken_images.csv").read_text().splitlines()) >= 10


def test_a_signal_to_workers_too_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Schedulers signal every process of a job, the loader's among them."""
    data = ["data=images_folder", f"data.root={write_folder(tmp_path / 'images', 43)}", "data.num_workers=2"]
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
