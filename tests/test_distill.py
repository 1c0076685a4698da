"""Real runs of `sami.distill`: killed and continued, on two ranks, from a cache, with broken photos and mistakes."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_runs import TINY, run_distill, start_two
from masked_images import draw_masks, draw_scene, write_sa1b_folder
from test_finetune import read_record, recorder
from training_runs import compose_config, wait_for

from sami.callbacks.metrics_table import read_table
from sami.cli import explain_errors
from sami.models.build import build_sam, save_sam
from sami.models.teachers import SegmenterTeacher
from sami.predict.predictor import SamPredictor

BOTH = "students=[timm/test_resnet,timm/test_vit2]"  # one with batch norms


def test_kill_9_and_continue(tmp_path: Path) -> None:
    """Two students, masks compared through a decoder that learns: the run that was cut is the one that was not."""
    data = [f"data.train={write_sa1b_folder(tmp_path / 'train', 9)}", "data.num_workers=1", BOTH]
    data += [f"data.val={write_sa1b_folder(tmp_path / 'val', 2, first=50)}", "method.loss_distance=standardized_mse"]
    data += ["method.mask_weight=1", "method.train_decoder=true"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_distill(whole, [*data, recorder(tmp_path / "whole.csv")]) == 0
    first = [recorder(tmp_path / "first.csv"), "+callbacks.kill={_target_: training_runs.KillAt, step: 3}"]
    assert run_distill(cut, [*data, *first]) == -signal.SIGKILL
    assert torch.load(cut / "last.ckpt", weights_only=True)["global_step"] == 3
    assert run_distill(cut, [*data, recorder(tmp_path / "second.csv")]) == 0

    seen = read_record(tmp_path / "whole.csv")
    assert len(seen) == 8 and read_record(tmp_path / "first.csv") == seen[:6]
    assert read_record(tmp_path / "second.csv") == seen[6:]  # the very next batch after the checkpoint
    expected, result = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, cut))
    assert expected["global_step"] == result["global_step"] == 4
    torch.testing.assert_close(result["state_dict"], expected["state_dict"], rtol=0, atol=0)
    for ours, theirs in zip(result["optimizer_states"], expected["optimizer_states"], strict=True):
        torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    tables = [[row for row in read_record(run / "metrics.csv") if "speed" not in row[1]] for run in (whole, cut)]
    assert tables[0] == tables[1]
    names = {row[1] for row in tables[0]}
    student = "timm_test_vit2"
    assert {f"val/{student}/box", f"val/{student}/teacher_point", f"train/{student}/mask_loss"} <= names
    assert {"val/of_teacher/click_1", "train/loss"} <= names and (whole / "curves.png").exists()
    pictures = {path.name for path in (whole / "pictures").iterdir()}
    assert pictures == {f"step_{step:08d}.png" for step in (0, 2, 4)}
    for label in ("timm_test_resnet", student):
        model = build_sam(checkpoint=whole / f"segmenter_{label}.safetensors")
        assert (model.image_size, model.resize_mode, model.decoder) == (64, "pad", "sam")
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected["state_dict"][f"students.{label}.{name}"], rtol=0, atol=0)

    assert run_distill(whole, [*data, "method.feature_weight=2"]) == 1  # another recipe is refused


def test_two_ranks_are_one_run_and_the_result_is_a_segmenter(tmp_path: Path) -> None:
    """Two ranks see the photos of one in equal batches, and end with the same weights up to rounding."""
    data = [f"data.train={write_sa1b_folder(tmp_path / 'train', 9)}", "schedule.epochs=1"]
    data += [f"data.val={write_sa1b_folder(tmp_path / 'val', 3, first=50)}", "method.loss_distance=standardized_mse"]
    assert run_distill(tmp_path / "one", [*data, recorder(tmp_path / "one.csv")]) == 0
    assert wait_for(start_two(tmp_path / "two", [*data, recorder(tmp_path / "two.csv")])) == [0, 0]
    alone, together = read_record(tmp_path / "one.csv"), [read_record(tmp_path / f"two.csv{r}") for r in ("", "1")]
    assert len(alone) == 4 and len(together[0]) == len(together[1]) == 2
    for step in range(2):
        positions = [json.loads(record[step][2]) for record in together]
        assert positions == [list(range(4 * step, 4 * step + 2)), list(range(4 * step + 2, 4 * step + 4))]
    one, other = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("one", "two"))
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=1e-3, atol=2e-4)
    tables = [{(s, n): v for s, n, v in read_table(tmp_path / run / "metrics.csv")} for run in ("one", "two")]
    keys = [key for key in tables[0] if key[1].startswith("val/")]
    assert len({name for _, name in keys}) > 20
    for key in keys:
        assert tables[1][key] == pytest.approx(tables[0][key], abs=2e-2), key

    model = build_sam(checkpoint=tmp_path / "one" / "segmenter.safetensors")
    decoder = SegmenterTeacher("timm/test_vit", None).sam.mask_decoder  # random weights are always the same
    torch.testing.assert_close(model.mask_decoder.state_dict(), decoder.state_dict(), rtol=0, atol=0)
    predictor = SamPredictor(model)
    predictor.set_image(draw_scene(3, draw_masks(3, 2)))
    masks, _, _ = predictor.predict(point_coords=np.array([[20.0, 20.0]]), point_labels=np.array([1]))
    assert masks.shape == (3, 48, 64)


def test_broken_photos_and_steps_that_are_not_finite(tmp_path: Path) -> None:
    root = write_sa1b_folder(tmp_path / "photos", 9)
    (root / "sa_3.jpg").write_bytes(b"no image")
    data = [f"data.train={root}", f"data.val={root}", "callbacks.broken_images.max_rate=0.9"]
    poison = f"+callbacks.poison={{_target_: training_runs.PoisonAt, step: 2, path: {tmp_path}/before.pt}}"
    assert run_distill(tmp_path / "run", [*data, poison]) == 1
    with open(tmp_path / "run" / "broken_images.csv", newline="") as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["sa_3.jpg"]
    replay = torch.load(tmp_path / "run" / "nonfinite.pt", weights_only=True)
    before = torch.load(tmp_path / "before.pt", weights_only=True)
    assert replay["step"] == 2 and replay["positions"] == [8, 12] and len(replay["images"]) == 4
    torch.testing.assert_close(replay["state_dict"], before, rtol=0, atol=0)


def explain(overrides: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the command line prints for this configuration."""
    from sami.distill import distill

    with pytest.raises(SystemExit) as stop, explain_errors():
        distill(compose_config([*TINY, *overrides], name="distill"))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train={tmp}/none.tar"], "1 of the 1 shards"),
        (["data.train={tmp}/photos", "model.image_size=40"], "image_size=40"),
        (["data.train={tmp}/photos", "model.resize_mode=stretch", "data.resize_mode=pad"], "set both alike"),
        (["data.train={tmp}/photos", "students=[vit_x]"], "students=['vit_x']"),
        (["data.train={tmp}/photos", "students=vit_t"], "students=[vit_t]"),
        (["data.train={tmp}/photos", "teacher.checkpoint={tmp}/stretch.safetensors"], "model.resize_mode=stretch"),
        (["data.train={tmp}/photos", "+method.flavour=1"], "unexpected keyword argument 'flavour'"),
        (["data.train={tmp}/photos", "decoder_checkpoint={tmp}/none.pth"], "none.pth"),
        (["data.train={tmp}/photos", "init={{timm/test_vit2: {tmp}/other.pth}}"], "{tmp}/other.pth"),
        (["data.train={tmp}/photos", "teacher=cached", "teacher.path={tmp}/none"], "holds no cache"),
        (["data.train={tmp}/photos", "schedule.global_batch_size=99"], "do not fill one global batch of 99"),
        (["+experiment=distill/mobile_sam", "data.train={tmp}/photos"], "Missing mandatory value"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, overrides: list[str], message: str, capsys) -> None:
    write_sa1b_folder(tmp_path / "photos", 5)
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    if "stretch.safetensors" in overrides[-1]:
        teacher = build_sam("timm/test_vit", image_size=64, resize_mode="stretch", decoder="sam")
        save_sam(teacher, tmp_path / "stretch.safetensors")
    printed = explain([override.format(tmp=tmp_path) for override in [*overrides, "run_dir={tmp}/run"]], capsys)
    assert message.format(tmp=tmp_path) in printed and "Traceback" not in printed
