"""Everything that communicates, with two ranks that hold different things."""

import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import write_folder, write_shards
from same_runs import kill_at, read_record, recorder
from training_runs import run_pretrain, start_two, wait_for

from sami.callbacks.metrics_table import read_table
from sami.metrics.agreement import FeatureAgreement
from sami.metrics.knn import KNNAccuracy
from sami.preemption import EXIT_REQUEUE


def overrides(root: Path) -> list[str]:
    shards = write_shards(root / "shards", [43])  # one shard: fewer than readers
    val = write_folder(root / "val", 11)  # odd: the last rank has one image less
    return ["data=images_shards", f"data.train={shards[0]}", f"data.val={val}", "method.standardize_target=true"]


def test_two_ranks_are_one_run(tmp_path: Path) -> None:
    """Two ranks see the images of one, in the same global batches, and end with the same weights up to rounding."""
    data = overrides(tmp_path)
    assert run_pretrain(tmp_path / "one", [*data, recorder(tmp_path / "one.csv")]) == 0
    two = [*data, "schedule.batch_size=2", recorder(tmp_path / "two.csv")]
    assert wait_for(start_two(tmp_path / "two", two)) == [0, 0]

    alone, together = read_record(tmp_path / "one.csv"), [read_record(tmp_path / f"two.csv{r}") for r in ("", "1")]
    assert len(alone) == len(together[0]) == len(together[1]) == 30
    for step in range(15):  # two accumulated batches each
        seen = [
            sorted(
                int(p)
                for rows in record
                for row in rows[2 * step : 2 * step + 2]
                for p in row[2].strip("[]").split(", ")
            )
            for record in ([alone], together)
        ]
        assert seen[0] == seen[1] == list(range(8 * step, 8 * step + 8))
    one, other = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("one", "two"))
    assert one["state_dict"]["statistics.num_tokens"] == other["state_dict"]["statistics.num_tokens"] == 40 * 4
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-4)
    tables = [{(s, n): v for s, n, v in read_table(tmp_path / run / "metrics.csv")} for run in ("one", "two")]
    keys = [key for key in tables[0] if key[1].startswith("val/")]
    assert len(keys) == 16
    for key in keys:
        assert tables[1][key] == pytest.approx(tables[0][key], rel=2e-3, abs=2e-3), key


def test_kill_both_and_continue(tmp_path: Path) -> None:
    data = overrides(tmp_path)
    assert wait_for(start_two(tmp_path / "whole", data)) == [0, 0]
    killed = start_two(tmp_path / "cut", [*data, kill_at(8)])
    assert wait_for(killed) == [-signal.SIGKILL] * 2
    assert wait_for(start_two(tmp_path / "cut", data)) == [0, 0]
    whole, cut = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "cut"))
    torch.testing.assert_close(cut["state_dict"], whole["state_dict"], rtol=0, atol=0)


def test_a_signal_to_one_rank_stops_both_at_one_step(tmp_path: Path) -> None:
    data = [*overrides(tmp_path), "schedule.epochs=100000"]
    processes = start_two(tmp_path / "run", [*data, "checkpoint_every_n_steps=100000"])
    table = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 90
    while not (table.exists() and table.read_text().count("train/loss") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].terminate()
    assert wait_for(processes) == [EXIT_REQUEUE] * 2
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] > 3


def test_fewer_validation_images_than_ranks(tmp_path: Path) -> None:
    """The rank without an image takes part in what the others gather."""
    data = [*overrides(tmp_path), f"data.val={write_folder(tmp_path / 'lonely', 1)}", "schedule.epochs=1"]
    assert wait_for(start_two(tmp_path / "run", data)) == [0, 0]


def metrics_on(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data = torch.load(f"{folder}/data.pt")
    part = slice(0, 13) if rank == 0 else slice(13, None)
    knn, agreement = KNNAccuracy(k=3), FeatureAgreement(6)
    knn.update(data["features"][part], data["labels"][part])
    agreement.update(data["prediction"][part], data["target"][part])
    torch.save({"knn": knn.compute(), **agreement.compute()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_metrics_over_two_ranks_equal_one(tmp_path: Path) -> None:
    data = {"features": torch.randn(30, 4), "labels": torch.arange(30) % 3, "target": torch.randn(30, 5, 6)}
    data["features"][:, 0] += 3 * data["labels"]
    data["prediction"] = data["target"] + 0.5 * torch.randn(30, 5, 6)
    torch.save(data, tmp_path / "data.pt")
    knn, agreement = KNNAccuracy(k=3), FeatureAgreement(6)
    knn.update(data["features"], data["labels"])
    agreement.update(data["prediction"], data["target"])
    expected = {"knn": knn.compute(), **agreement.compute()}
    mp.spawn(metrics_on, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        result = torch.load(tmp_path / f"rank{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value)
