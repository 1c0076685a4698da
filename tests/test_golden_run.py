"""A short run gives the losses it gave when it was last looked at: a change of numbers has to be meant."""

from pathlib import Path

import pytest
from conftest import write_folder
from runs import run_pretrain

from sami.methods.logs import read_table

# python -m pytest tests/test_golden_run.py, seed 0; AVX-512 CPU, torch 2.15, fp32
LOSSES = [
    *(0.70825, 0.73390, 0.66255, 0.54733, 0.54700),
    *(0.52563, 0.45972, 0.47330, 0.45204, 0.44227),
    *(0.43306, 0.42242, 0.41498, 0.39186, 0.40618),
]


def test_losses_of_the_first_steps(tmp_path: Path) -> None:
    data = ["data=image_folder", f"data.root={write_folder(tmp_path / 'photos', 43)}", "teacher=hog"]
    assert run_pretrain(tmp_path / "run", [*data, "method.loss_tokens=all"]) == 0
    losses = [value for _, name, value in read_table(tmp_path / "run" / "metrics.csv") if name == "train/loss"]
    assert losses == pytest.approx(LOSSES, rel=1e-3)
