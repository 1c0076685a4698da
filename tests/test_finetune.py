"""Real runs of `sami.finetune`: killed and continued, on two ranks, and with broken images."""

import csv
import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from masked_images import write_coco, write_sa1b_folder, write_sa1b_tars
from same_runs import check_cut_run, check_replay, check_two_ranks, poison_at, read_checkpoint, read_numbers
from training_runs import compose_config, run_finetune

from sami.data.sources import drawn_shards
from sami.models.build import build_sam, save_sam


def test_kill_9_and_continue(tmp_path: Path) -> None:
    """With drop path, loading workers, two validation sets: the run that was cut is the one that was not."""
    write_sa1b_tars(tmp_path / "tars", [5, 9, 3])
    val = {"mine": str(write_sa1b_folder(tmp_path / "val", 4, first=50)), "coco": str(write_coco(tmp_path / "coco", 4))}
    data = [f"data.train='{tmp_path}/tars/sa_{{000000..000002}}.tar'"]
    data += [f"data.val={{mine: {val['mine']}, coco: {val['coco']}}}"]
    data += ["model.drop_path=0.3", "data.flip=0.5", "data.num_workers=1", "data.shuffle_window=2"]
    whole, _ = check_cut_run("finetune", tmp_path, data, killed=5, kept=3, steps=8)
    names = {row[1] for row in read_numbers(whole)}
    assert {"val/mine/box", "val/coco/click_5", "val/coco/filled_box", "val/mine/click_disc", "train/loss"} <= names
    assert (whole / "curves.png").exists()
    assert {path.name for path in (whole / "pictures").iterdir()} == {
        f"{name}_step_{step:08d}.png" for name in val for step in (0, 4, 8)
    }
    model = build_sam(checkpoint=whole / "segmenter.safetensors")
    assert (model.image_size, model.resize_mode, model.decoder) == (32, "stretch", "sam")
    expected = read_checkpoint(whole)["state_dict"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[f"model.{name}"], rtol=0, atol=0)

    assert run_finetune(whole, [*data, "method.layer_decay=0.9"]) == 1  # another recipe is refused
    before = (whole / "last.ckpt").stat().st_mtime_ns
    assert run_finetune(whole, data) == 0 and (whole / "last.ckpt").stat().st_mtime_ns == before


def test_two_ranks_are_one_run(tmp_path: Path) -> None:
    data = [f"data.train={write_sa1b_folder(tmp_path / 'train', 9)}", "schedule.epochs=1", "protocol.num_clicks=0"]
    data += [f"data.val={write_sa1b_folder(tmp_path / 'val', 3, first=50)}"]
    _, names = check_two_ranks("finetune", tmp_path, data)
    assert "val/box" in names and len(names) == 10


def test_broken_images_are_listed_and_left_out(tmp_path: Path) -> None:
    root = write_sa1b_folder(tmp_path / "images", 9)
    (root / "sa_3.json").write_bytes(b"{")
    (root / "sa_4.json").write_text(json.dumps({"annotations": []}))
    data = [f"data.train={root}", f"data.val={root}", "callbacks.broken_images.max_rate=0.9", "schedule.epochs=1"]
    assert run_finetune(tmp_path / "run", data) == 0
    with open(tmp_path / "run" / "broken_images.csv", newline="") as file:
        rows = {Path(row["image"]).name: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {"sa_3.jpg", "sa_4.jpg"}
    assert "JSONDecodeError" in rows["sa_3.jpg"] and "none of its 0 masks" in rows["sa_4.jpg"]


def test_a_step_that_is_not_finite_leaves_the_weights_and_what_it_saw(tmp_path: Path) -> None:
    data = [f"data.train={write_sa1b_folder(tmp_path / 'images', 9)}", "method.layer_decay=0.8"]
    assert run_finetune(tmp_path / "run", [*data, poison_at(2, tmp_path)]) == 1
    check_replay(tmp_path / "run", step=2, batch=4)


def test_the_backbone_of_a_pretraining_run_and_another_models_decoder(tmp_path: Path) -> None:
    """Position tables of 4 x 4 patches become those of 14 x 14; what comes from no file stays random."""
    from sami.models.build import start_segmenter
    from sami.models.vit import ViT

    options = {"image_size": 32, "resize_mode": "stretch", "decoder": "sam", "drop_path": 0.0, "checkpoint": None}
    vit = ViT("tiny", image_size=64, pos_embed="learned")
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    other = build_sam("efficient_sam_vits", decoder="sam")
    torch.save(other.state_dict(), tmp_path / "other.pth")
    files = {"backbone": str(tmp_path / "vit.pth"), "decoder_checkpoint": str(tmp_path / "other.pth")}
    model = start_segmenter(name="efficient_sam_vitt", **files, **options)
    torch.testing.assert_close(model.image_encoder.blocks[3].mlp.fc1.weight, vit.blocks[3].mlp.fc1.weight)
    torch.testing.assert_close(model.mask_decoder.state_dict(), other.mask_decoder.state_dict())
    assert model.image_encoder.pos_embed.shape == (1, 197, 192)
    save_sam(model, tmp_path / "whole.safetensors")
    options["checkpoint"] = str(tmp_path / "whole.safetensors")
    larger = start_segmenter(
        name="efficient_sam_vitt", backbone=None, decoder_checkpoint=None, **{**options, "image_size": 64}
    )
    assert larger.image_size == 64  # a run goes on at another size
    torch.testing.assert_close(larger.state_dict(), model.state_dict())
    options["checkpoint"] = None
    with pytest.raises(ValueError, match="is a whole segmenter"):
        start_segmenter(name="efficient_sam_vitt", **files, **{**options, "checkpoint": "x"})
    with pytest.raises(ValueError, match="1024 for sam_vit_b"):
        start_segmenter(name="sam_vit_b", backbone=None, decoder_checkpoint=None, **{**options, "resize_mode": "pad"})
    with pytest.raises(ValueError, match="missing: patch_embed"):
        start_segmenter(name="mobile_sam", backbone=str(tmp_path / "vit.pth"), decoder_checkpoint=None, **options)


def test_the_built_in_sample_has_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn_shards, "VAL_SCENES", 2)
    cfg = compose_config(["data.num_train=6", "data.num_val=2", f"data.folder={tmp_path}"], name="finetune")
    data = instantiate(cfg.data)
    data.setup_stream(batch_size=4, epoch_size=4, num_batches=1)
    batch = data.train_set().__getitems__([0, 1, 2, 3])
    assert (batch["object_valid"].sum(1) >= 1).all() and batch["masks"].shape[-2:] == (128, 128)
    assert data.spread_val_batch("", 2)["image"].shape == (2, 3, 128, 128)
