import pytest
import torch
from training_runs import compose_config

from sami.benchmark.__main__ import run
from sami.benchmark.segmenter import decoder_stages, encoder_stages
from sami.benchmark.timing import count_flops
from sami.models.build import build_sam


def test_stages_run_and_do_the_work_they_name() -> None:
    sam = build_sam("efficient_sam_vitt", decoder="sam", image_size=64)
    decoder = {name: count_flops(stage) for name, stage in decoder_stages(sam, 4, "cpu").items()}
    assert decoder["one call"] < decoder["clicks"] * 1.2 < decoder["single calls"] * 1.2 < decoder["tiled"] * 1.2
    encoder = {name: count_flops(stage) for name, stage in encoder_stages(sam, 64, "cpu").items()}
    assert encoder["encoder"] == encoder["encoder, released"] > 0
    assert not encoder_stages(sam, 64, "cpu")["encoder"]().requires_grad
    assert not decoder_stages(sam, 2, "cpu")["one call"]()[0].requires_grad
    assert torch.is_grad_enabled()


def test_tables_on_a_small_setting(capsys: pytest.CaptureFixture) -> None:
    options = ["segmenter.image_size=64", "segmenter.models=[efficient_sam_vitt]", "segmenter.num_prompts=3"]
    options += ["stage=segmenter", "steps=1", "precision=bf16", "device=cpu", "threads=1"]
    run(compose_config(options, name="benchmark"))
    rows = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    speed, released, ratio, share, beside_fp32 = map(float, rows["efficient_sam_vitt"][:5])
    assert min(speed, released, ratio, share, beside_fp32) > 0
    for name in ("single calls", "clicks", "tiled"):
        assert float(rows[name][0]) > 0 and float(rows[name][1]) > 0
    assert float(rows["tiled"][3]) > 0 and rows["tiled"][-2:] == ["in", "fp32"]
