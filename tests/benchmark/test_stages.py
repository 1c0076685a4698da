import torch

from sami.benchmark.stages import count_flops, decoder_stages, encoder_stages
from sami.models.build import build_sam


def test_stages_run_and_do_the_work_they_name():
    sam = build_sam("efficient_sam_vitt", decoder="sam", image_size=64)
    decoder = {name: count_flops(stage) for name, stage in decoder_stages(sam, 4, "cpu").items()}
    assert decoder["one call"] < decoder["clicks"] * 1.2 < decoder["single calls"] * 1.2 < decoder["tiled"] * 1.2
    assert decoder["tiled"] <= decoder["tiled, single calls"]
    encoder = {name: count_flops(stage) for name, stage in encoder_stages(sam, 64, "cpu").items()}
    assert encoder["encoder"] == encoder["encoder, released"] > 0
    assert not encoder_stages(sam, 64, "cpu")["encoder"]().requires_grad
    assert not decoder_stages(sam, 2, "cpu")["one call"]()[0].requires_grad
    assert torch.is_grad_enabled()
