"""Runs that have to be one: cut and continued, or on two ranks; and what a step that is not finite leaves behind."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import run_training, start_two, wait_for

from sami.callbacks.metrics_table import read_table


def recorder(path: Path) -> str:
    """The override that writes down what each batch was, see `Recorder`."""
    return f"+callbacks.recorder={{_target_: training_runs.Recorder, path: {path}}}"


def kill_at(step: int) -> str:
    """The override that ends a run with kill -9."""
    return f"+callbacks.kill={{_target_: training_runs.KillAt, step: {step}}}"


def poison_at(step: int, folder: Path) -> str:
    """The override that makes a step infinite, and keeps the weights from before it in `folder`."""
    return f"+callbacks.poison={{_target_: training_runs.PoisonAt, step: {step}, path: {folder}/before.pt}}"


def read_record(path: Path) -> list[list[str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.reader(file))


def read_numbers(run: Path) -> list[list[str]]:
    """The rows of a run's `metrics.csv`, but for those that say how fast it was."""
    return [row for row in read_record(run / "metrics.csv") if "speed" not in row[1]]


def read_checkpoint(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return torch.load(run / "last.ckpt", weights_only=True)


def check_cut_run(
    command: str, folder: Path, overrides: list[str], *, killed: int, kept: int, steps: int
) -> tuple[Path, Path]:
    """A run killed within step `killed` and continued from `kept` is the one of `steps` that was not, bit for bit.

    Of every batch, weight and number. Steps are of two batches. Gives the folders of the whole run and the cut one.
    """
    whole, cut = folder / "whole", folder / "cut"
    assert run_training(command, whole, [*overrides, recorder(folder / "whole.csv")]) == 0
    first = [*overrides, recorder(folder / "first.csv"), kill_at(killed)]
    assert run_training(command, cut, first) == -signal.SIGKILL
    assert read_checkpoint(cut)["global_step"] == kept
    assert run_training(command, cut, [*overrides, recorder(folder / "second.csv")]) == 0
    seen = read_record(folder / "whole.csv")
    assert len(seen) == 2 * steps and read_record(folder / "first.csv") == seen[: 2 * killed]
    assert read_record(folder / "second.csv") == seen[2 * kept :]  # the very next batch after the checkpoint
    expected, result = read_checkpoint(whole), read_checkpoint(cut)
    assert expected["global_step"] == result["global_step"] == steps
    torch.testing.assert_close(result["state_dict"], expected["state_dict"], rtol=0, atol=0)
    for ours, theirs in zip(result["optimizer_states"], expected["optimizer_states"], strict=True):
        torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert result["lr_schedulers"] == expected["lr_schedulers"]
    assert read_numbers(whole) == read_numbers(cut)  # one row per step, none lost, none twice
    return whole, cut


def check_two_ranks(command: str, folder: Path, overrides: list[str]) -> tuple[Path, set[str]]:
    """Two ranks see the images of one in equal batches, and end with the same weights and numbers up to rounding.

    Of runs of two steps of four images. Gives the folder of the run on one rank and the names of validation's numbers.
    """
    assert run_training(command, folder / "one", [*overrides, recorder(folder / "one.csv")]) == 0
    two = start_two(folder / "two", [*overrides, recorder(folder / "two.csv")], command=command)
    assert wait_for(two) == [0, 0]
    alone, together = read_record(folder / "one.csv"), [read_record(folder / f"two.csv{rank}") for rank in ("", "1")]
    assert len(alone) == 4 and len(together[0]) == len(together[1]) == 2
    for step in range(2):
        positions = [json.loads(record[step][2]) for record in together]
        assert positions == [list(range(4 * step, 4 * step + 2)), list(range(4 * step + 2, 4 * step + 4))]
        assert [record[step][3:] for record in together] == [row[3:] for row in alone[2 * step : 2 * step + 2]]
    one, other = (read_checkpoint(folder / run)["state_dict"] for run in ("one", "two"))
    torch.testing.assert_close(other, one, rtol=1e-3, atol=2e-4)
    tables = [{(s, n): v for s, n, v in read_table(folder / run / "metrics.csv")} for run in ("one", "two")]
    keys = [key for key in tables[0] if key[1].startswith("val/")]
    for key in keys:
        assert tables[1][key] == pytest.approx(tables[0][key], abs=2e-2), key
    return folder / "one", {name for _, name in keys}


def check_replay(run: Path, *, step: int, batch: int) -> None:
    """After `poison_at`: what the run saw at `step`, of `batch` images, and the weights from before it."""
    replay = torch.load(run / "nonfinite.pt", weights_only=True)
    assert replay["step"] == step and replay["positions"] == [step * batch, (step + 1) * batch]
    assert len(set(replay["images"])) == batch
    before = torch.load(run.parent / "before.pt", weights_only=True)
    torch.testing.assert_close(replay["state_dict"], before, rtol=0, atol=0)
