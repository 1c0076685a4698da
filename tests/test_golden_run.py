"""A short run gives the losses it gave when it was last looked at: a change of numbers has to be meant."""

from pathlib import Path

import pytest
from conftest import write_folder
from training_runs import run_pretrain

from sami.callbacks.metrics_table import read_table

# python -m pytest tests/test_golden_run.py, seed 0; AVX-512 CPU, torch 2.15, fp32
LOSSES = [
    *(0.99385, 1.00362, 0.82491, 0.69045, 0.61903),
    *(0.58524, 0.53157, 0.51248, 0.49496, 0.48616),
    *(0.47375, 0.45148, 0.44227, 0.45129, 0.45936),
]


def test_losses_of_the_first_steps(tmp_path: Path) -> None:
    data = ["data=images_folder", f"data.root={write_folder(tmp_path / 'images', 43)}", "teacher=hog"]
    assert run_pretrain(tmp_path / "run", [*data, "method.loss_tokens=all"]) == 0
    losses = [value for _, name, value in read_table(tmp_path / "run" / "metrics.csv") if name == "train/loss"]
    assert losses == pytest.approx(LOSSES, rel=1e-3)
