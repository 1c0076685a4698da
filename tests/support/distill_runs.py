"""Real runs of `sami.distill` in processes of their own, as `runs` has them for pretraining."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import torch
from training_runs import compose_config, wait_for

TINY = [
    *("model.image_size=64", "data=whole_images", "data.num_prompts=3", "data.num_val_masks=2", "data.num_workers=0"),
    *("teacher.name=timm/test_vit", "students=[timm/test_vit2]", "data.val_batch_size=3", "schedule.epochs=2"),
    *("schedule.global_batch_size=4", "schedule.batch_size=2", "schedule.warmup_epochs=0.4", "notice=null"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "~callbacks.progress"),
    *("+trainer.enable_progress_bar=false", "checkpoint_every_n_steps=3", "callbacks.pictures.num_images=1"),
    "validate_every_epochs=1",
]


def distill_in(run_dir: Path, overrides: list[str], environment: dict[str, str]) -> None:
    """The body of a child process."""
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from sami.distill import distill

    distill(compose_config([*TINY, f"run_dir={run_dir}", *overrides], name="distill"))


def start_distill(run_dir: Path, overrides: list[str], *, environment: dict[str, str] | None = None) -> Any:
    """Starts it and gives the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sami.pretrain", "sami.distill", "training_runs"])
    process = context.Process(target=distill_in, args=(run_dir, overrides, environment or {}))
    process.start()
    return process


def run_distill(run_dir: Path, overrides: list[str]) -> int:
    """Runs `sami.distill` to its end, and gives the exit code (negative: the signal that ended it)."""
    return wait_for([start_distill(run_dir, overrides)])[0]


def start_two(run_dir: Path, overrides: list[str]) -> list[Any]:
    """Starts it as two ranks that talk through gloo, and gives the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    options = [*overrides, "trainer.devices=2", "trainer.strategy=ddp"]
    return [start_distill(run_dir, options, environment={**master, "LOCAL_RANK": str(rank)}) for rank in range(2)]
