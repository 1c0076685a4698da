"""Real runs of `sami.finetune`: killed and continued, on two ranks, with broken photos and with mistakes."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from finetune_runs import TINY, run_finetune, start_finetune
from hydra.utils import instantiate
from masked_images import write_coco, write_sa1b_folder, write_sa1b_tars
from training_runs import compose_config, start_two, wait_for

from sami.callbacks.metrics_table import read_table
from sami.cli import explain_errors
from sami.data.sources.drawn_shards import write_sample
from sami.models.build import build_sam, save_sam


def recorder(path: Path) -> str:
    return f"+callbacks.recorder={{_target_: training_runs.Recorder, path: {path}}}"


def read_record(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_kill_9_and_continue(tmp_path: Path) -> None:
    """With drop path, loading workers, two validation sets: the run that was cut is the one that was not."""
    write_sa1b_tars(tmp_path / "tars", [5, 9, 3])
    val = {"mine": str(write_sa1b_folder(tmp_path / "val", 4, first=50)), "coco": str(write_coco(tmp_path / "coco", 4))}
    data = [f"data.train='{tmp_path}/tars/sa_{{000000..000002}}.tar'"]
    data += [f"data.val={{mine: {val['mine']}, coco: {val['coco']}}}"]
    data += ["model.drop_path=0.3", "data.flip=0.5", "data.num_workers=1", "data.shuffle_window=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_finetune(whole, [*data, recorder(tmp_path / "whole.csv")]) == 0
    first = [recorder(tmp_path / "first.csv"), "+callbacks.kill={_target_: training_runs.KillAt, step: 5}"]
    assert run_finetune(cut, [*data, *first]) == -signal.SIGKILL
    assert torch.load(cut / "last.ckpt", weights_only=True)["global_step"] == 3  # inside the first epoch of 4 steps
    assert run_finetune(cut, [*data, recorder(tmp_path / "second.csv")]) == 0

    seen = read_record(tmp_path / "whole.csv")
    assert len(seen) == 16 and read_record(tmp_path / "first.csv") == seen[:10]
    assert read_record(tmp_path / "second.csv") == seen[6:]  # the very next batch after the checkpoint
    expected, result = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, cut))
    assert expected["global_step"] == result["global_step"] == 8
    torch.testing.assert_close(result["state_dict"], expected["state_dict"], rtol=0, atol=0)
    for ours, theirs in zip(result["optimizer_states"], expected["optimizer_states"], strict=True):
        torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    tables = [[row for row in read_record(run / "metrics.csv") if "speed" not in row[1]] for run in (whole, cut)]
    assert tables[0] == tables[1]
    names = {row[1] for row in tables[0]}
    assert {"val/mine/box", "val/coco/click_5", "val/coco/filled_box", "val/mine/click_disc", "train/loss"} <= names
    assert (whole / "curves.png").exists()
    assert {path.name for path in (whole / "pictures").iterdir()} == {
        f"{name}_step_{step:08d}.png" for name in val for step in (0, 4, 8)
    }
    model = build_sam(checkpoint=whole / "segmenter.safetensors")
    assert (model.image_size, model.resize_mode, model.decoder) == (32, "stretch", "sam")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected["state_dict"][f"model.{name}"], rtol=0, atol=0)

    assert run_finetune(whole, [*data, "method.layer_decay=0.9"]) == 1  # another recipe is refused
    before = (whole / "last.ckpt").stat().st_mtime_ns
    assert run_finetune(whole, data) == 0 and (whole / "last.ckpt").stat().st_mtime_ns == before


def test_two_ranks_are_one_run(tmp_path: Path) -> None:
    """Two ranks see the photos of one in equal batches, and end with the same weights up to rounding."""
    data = [f"data.train={write_sa1b_folder(tmp_path / 'train', 9)}", "schedule.epochs=1", "protocol.num_clicks=0"]
    data += [f"data.val={write_sa1b_folder(tmp_path / 'val', 3, first=50)}"]
    assert run_finetune(tmp_path / "one", [*data, recorder(tmp_path / "one.csv")]) == 0
    assert wait_for(start_two(tmp_path / "two", [*data, recorder(tmp_path / "two.csv")], start=start_finetune)) == [
        0,
        0,
    ]
    alone, together = read_record(tmp_path / "one.csv"), [read_record(tmp_path / f"two.csv{r}") for r in ("", "1")]
    assert len(alone) == 4 and len(together[0]) == len(together[1]) == 2
    for step in range(2):
        positions = [json.loads(record[step][2]) for record in together]
        assert positions == [list(range(4 * step, 4 * step + 2)), list(range(4 * step + 2, 4 * step + 4))]
        assert [record[step][3:] for record in together] == [row[3:] for row in alone[2 * step : 2 * step + 2]]
    one, other = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("one", "two"))
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=1e-3, atol=2e-4)
    tables = [{(s, n): v for s, n, v in read_table(tmp_path / run / "metrics.csv")} for run in ("one", "two")]
    keys = [key for key in tables[0] if key[1].startswith("val/")]
    assert "val/box" in {name for _, name in keys} and len(keys) == 20
    for key in keys:
        assert tables[1][key] == pytest.approx(tables[0][key], abs=2e-2), key


def test_broken_photos_are_listed_and_left_out(tmp_path: Path) -> None:
    root = write_sa1b_folder(tmp_path / "photos", 9)
    (root / "sa_3.json").write_bytes(b"{")
    (root / "sa_4.json").write_text(json.dumps({"annotations": []}))
    data = [f"data.train={root}", f"data.val={root}", "callbacks.broken_images.max_rate=0.9", "schedule.epochs=1"]
    assert run_finetune(tmp_path / "run", data) == 0
    with open(tmp_path / "run" / "broken_images.csv", newline="") as file:
        rows = {Path(row["image"]).name: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {"sa_3.jpg", "sa_4.jpg"}
    assert "JSONDecodeError" in rows["sa_3.jpg"] and "none of its 0 masks" in rows["sa_4.jpg"]


def test_a_step_that_is_not_finite_leaves_the_weights_and_what_it_saw(tmp_path: Path) -> None:
    data = [f"data.train={write_sa1b_folder(tmp_path / 'photos', 9)}", "method.layer_decay=0.8"]
    poison = f"+callbacks.poison={{_target_: training_runs.PoisonAt, step: 2, path: {tmp_path}/before.pt}}"
    assert run_finetune(tmp_path / "run", [*data, poison]) == 1
    replay = torch.load(tmp_path / "run" / "nonfinite.pt", weights_only=True)
    before = torch.load(tmp_path / "before.pt", weights_only=True)
    assert replay["step"] == 2 and replay["positions"] == [8, 12] and len(replay["images"]) == 4
    torch.testing.assert_close(replay["state_dict"], before, rtol=0, atol=0)


def explain(overrides: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the command line prints for this configuration."""
    from sami.finetune import finetune

    with pytest.raises(SystemExit) as stop, explain_errors():
        finetune(compose_config([*TINY, *overrides], name="finetune"))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train={tmp}/none.tar"], "1 of the 1 shards"),
        (["data.train={tmp}/none.json"], "COCO data needs a file and a folder"),
        (["data.train={tmp}/photos", "model.image_size=40"], "image_size=40"),
        (["data.train={tmp}/photos", "data.resize_mode=crop"], "resize_mode='crop'"),
        (["data.train={tmp}/photos", "model.resize_mode=pad", "data.resize_mode=stretch"], "set both alike"),
        (["data.train={tmp}/photos", "method.train_parts=[]"], "train_parts=[]"),
        (["data.train={tmp}/photos", "method.layer_decay=2"], "layer_decay=2"),
        (["data.train={tmp}/photos", "model.decoder=efficient_sam"], "protocol=points"),
        (["data.train={tmp}/photos", "model.backbone={tmp}/none.pth"], "none.pth"),
        (["data.train={tmp}/photos", "model.backbone={tmp}/other.pth"], "{tmp}/other.pth"),
        (["data.train={tmp}/photos", "data.num_masks=0"], "num_masks=0"),
        (["data.train={tmp}/photos", "schedule.global_batch_size=99"], "do not fill one global batch of 99"),
        ([], "data.train"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, overrides: list[str], message: str, capsys) -> None:
    write_sa1b_folder(tmp_path / "photos", 5)
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    printed = explain([override.format(tmp=tmp_path) for override in [*overrides, "run_dir={tmp}/run"]], capsys)
    assert message.format(tmp=tmp_path) in printed and "Traceback" not in printed


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


def test_the_built_in_sample_has_masks(tmp_path: Path) -> None:
    write_sample(tmp_path, num_train=6, num_val=2)
    cfg = compose_config(["data.num_train=6", "data.num_val=2", f"data.folder={tmp_path}"], name="finetune")
    data = instantiate(cfg.data)
    data.setup_stream(batch_size=4, epoch_size=4, num_batches=1)
    batch = data.train_set().__getitems__([0, 1, 2, 3])
    assert (batch["object_valid"].sum(1) >= 1).all() and batch["masks"].shape[-2:] == (128, 128)
    assert data.spread_val_batch("", 2)["image"].shape == (2, 3, 128, 128)
