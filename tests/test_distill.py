"""Real runs of `sami.distill`: killed and continued, on two ranks, with broken images and a step that is not finite."""

import csv
from pathlib import Path

import numpy as np
import torch
from masked_images import draw_masks, draw_scene, write_sa1b_folder
from same_runs import check_cut_run, check_replay, check_two_ranks, poison_at, read_checkpoint, read_numbers
from training_runs import run_distill

from sami.models.build import build_sam
from sami.models.teachers import SegmenterTeacher
from sami.predict.predictor import SamPredictor

BOTH = "students=[timm/test_resnet,timm/test_vit2]"  # one with batch norms


def test_kill_9_and_continue(tmp_path: Path) -> None:
    """Two students, masks compared through a decoder that learns: the run that was cut is the one that was not."""
    data = [f"data.train={write_sa1b_folder(tmp_path / 'train', 9)}", "data.num_workers=1", BOTH]
    data += [f"data.val={write_sa1b_folder(tmp_path / 'val', 2, first=50)}", "method.loss_distance=standardized_mse"]
    data += ["method.mask_weight=1", "method.train_decoder=true"]
    whole, _ = check_cut_run("distill", tmp_path, data, killed=3, kept=3, steps=4)
    names = {row[1] for row in read_numbers(whole)}
    student = "timm_test_vit2"
    assert {f"val/{student}/box", f"val/{student}/teacher_point", f"train/{student}/mask_loss"} <= names
    assert {"val/of_teacher/click_1", "train/loss"} <= names and (whole / "curves.png").exists()
    pictures = {path.name for path in (whole / "pictures").iterdir()}
    assert pictures == {f"step_{step:08d}.png" for step in (0, 2, 4)}
    expected = read_checkpoint(whole)["state_dict"]
    for label in ("timm_test_resnet", student):
        model = build_sam(checkpoint=whole / f"segmenter_{label}.safetensors")
        assert (model.image_size, model.resize_mode, model.decoder) == (64, "pad", "sam")
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[f"students.{label}.{name}"], rtol=0, atol=0)

    assert run_distill(whole, [*data, "method.feature_weight=2"]) == 1  # another recipe is refused


def test_two_ranks_are_one_run_and_the_result_is_a_segmenter(tmp_path: Path) -> None:
    data = [f"data.train={write_sa1b_folder(tmp_path / 'train', 9)}", "schedule.epochs=1"]
    data += [f"data.val={write_sa1b_folder(tmp_path / 'val', 3, first=50)}", "method.loss_distance=standardized_mse"]
    one, names = check_two_ranks("distill", tmp_path, data)
    assert len(names) > 20

    model = build_sam(checkpoint=one / "segmenter.safetensors")
    decoder = SegmenterTeacher("timm/test_vit", None).sam.mask_decoder  # random weights are always the same
    torch.testing.assert_close(model.mask_decoder.state_dict(), decoder.state_dict(), rtol=0, atol=0)
    predictor = SamPredictor(model)
    predictor.set_image(draw_scene(3, draw_masks(3, 2)))
    masks, _, _ = predictor.predict(point_coords=np.array([[20.0, 20.0]]), point_labels=np.array([1]))
    assert masks.shape == (3, 48, 64)


def test_broken_images_and_steps_that_are_not_finite(tmp_path: Path) -> None:
    root = write_sa1b_folder(tmp_path / "images", 9)
    (root / "sa_3.jpg").write_bytes(b"no image")
    data = [f"data.train={root}", f"data.val={root}", "callbacks.broken_images.max_rate=0.9"]
    assert run_distill(tmp_path / "run", [*data, poison_at(2, tmp_path)]) == 1
    with open(tmp_path / "run" / "broken_images.csv", newline="") as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["sa_3.jpg"]
    check_replay(tmp_path / "run", step=2, batch=4)
