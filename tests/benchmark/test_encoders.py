"""The table of image encoders: sizes that are published, and rows that differ as they should."""

import pytest
import torch

from sami.benchmark.encoders import ENCODERS, count_macs, measure_encoders, print_encoders
from sami.benchmark.timing import Machine
from sami.models.build import build_image_encoder

CPU = Machine(precision="32", device="cpu", threads=1)


def test_sizes_are_those_of_the_papers() -> None:
    """EfficientSAM's encoders exactly as its released files have them."""
    with torch.device("meta"):
        sizes = {
            row: sum(parameter.numel() for parameter in build_image_encoder(name).parameters())
            for row, (name, fused) in ENCODERS.items()
            if not fused
        }
        macs = count_macs(build_image_encoder("sam_vit_b"), 1024)
    assert sizes["ViT-Ti"] == 6_163_840 and sizes["ViT-S"] == 22_353_664
    assert sizes["SAM ViT-B"] == 89_670_912
    assert 5e6 < sizes["TinyViT-5M"] < 6.5e6 and 22e6 < sizes["RepViT-M2.3"] < 24e6
    assert macs / 1e9 == pytest.approx(972 / 2, rel=0.05)  # counted before: 972 GFLOP


def test_rows_and_a_printed_table(capsys: pytest.CaptureFixture) -> None:
    rows = ("RepViT-M2.3", "RepViT-M2.3, fused")
    plain, fused = measure_encoders(CPU, image_size=64, repetitions=1, rows=rows).values()
    assert fused.parameters < plain.parameters and fused.macs < plain.macs
    assert min(plain.seconds, fused.seconds) > 0
    print_encoders(CPU, image_size=64, repetitions=1, rows=("TinyViT-5M",))
    assert capsys.readouterr().out.splitlines()[2].startswith("TinyViT-5M")
    with pytest.raises(ValueError, match="for 1024, leave it out"):
        measure_encoders(CPU, image_size=64, repetitions=1)
    with pytest.raises(ValueError, match="ViT-X: choose from"):
        measure_encoders(CPU, image_size=64, repetitions=1, rows=("ViT-X",))
