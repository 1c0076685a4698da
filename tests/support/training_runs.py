"""Real runs of training in processes of their own, so that they can be killed and asked to leave."""

import csv
import multiprocessing
import os
import signal
import socket
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

METHODS = [f"sami.methods.{name}" for name in ("pretraining", "finetuning", "distillation")]
CONF = str(Path(__file__).parents[2] / "conf")
ANYWHERE = [
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "~callbacks.progress"),
    *("+trainer.enable_progress_bar=false", "notice=null", "checkpoint_every_n_steps=3", "data.num_workers=0"),
]
TINY = [
    *("model.image_size=32", "decoder.width=64", "decoder.depth=1", "decoder.num_heads=4", "teacher=pixels"),
    *("schedule.global_batch_size=8", "schedule.batch_size=4", "schedule.epochs=3", "schedule.base_lr=4.0e-3"),
    *("callbacks.pictures.num_images=2", "data.val_batch_size=5", *ANYWHERE),
]
SHORT = [
    *("schedule.global_batch_size=4", "schedule.batch_size=2", "schedule.epochs=2", "schedule.warmup_epochs=0.4"),
    *("data.val_batch_size=3", "validate_every_epochs=1", *ANYWHERE),
]
SMALLEST = {  # settings of a command that let it run in seconds
    "pretrain": TINY,
    "finetune": [
        *("model.image_size=32", "data=masks_sa1b", "data.mask_size=16", "data.num_masks=3", "data.num_val_masks=2"),
        *("protocol.num_clicks=1", "protocol.num_refinements=0", "callbacks.pictures.num_images=2", *SHORT),
    ],
    "distill": [
        *("model.image_size=64", "data=whole_images", "data.num_prompts=3", "data.num_val_masks=2"),
        *("teacher.name=timm/test_vit", "students=[timm/test_vit2]", "callbacks.pictures.num_images=1", *SHORT),
    ],
}


def compose_config(overrides: list[str], *, name: str = "pretrain") -> DictConfig:
    """The configuration that the command line would give."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, overrides)


def train_in(command: str, overrides: list[str], environment: dict[str, str], own_group: bool) -> None:
    """The body of a child process."""
    multiprocessing.set_start_method("fork", force=True)  # as from the command line; ours would pass on "forkserver"
    if own_group:
        os.setpgid(0, 0)
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from sami.training import train

    train(compose_config(overrides, name=command))


def start_child(body: Callable[..., None], *arguments: Any) -> Any:
    """Calls `body` in a process of its own, which finds everything imported. Gives the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*METHODS, "sami.training", "sami.cache.__main__", "training_runs"])
    process = context.Process(target=body, args=arguments)
    process.start()
    return process


def start_training(
    command: str,
    run_dir: Path,
    overrides: list[str],
    *,
    environment: dict[str, str] | None = None,
    own_group: bool = False,
) -> Any:
    """Starts `sami.<command>` on `SMALLEST`, with a process group of its own if its workers are to be signalled too.

    Gives the process.
    """
    settings = [*SMALLEST[command], f"run_dir={run_dir}", *overrides]
    return start_child(train_in, command, settings, environment or {}, own_group)


def run_training(command: str, run_dir: Path, overrides: list[str]) -> int:
    """Runs `sami.<command>` to its end, and gives the exit code (negative: the signal that ended it)."""
    return wait_for([start_training(command, run_dir, overrides)])[0]


start_pretrain, run_pretrain = partial(start_training, "pretrain"), partial(run_training, "pretrain")
run_finetune, run_distill = partial(run_training, "finetune"), partial(run_training, "distill")


def start_two(run_dir: Path, overrides: list[str], *, command: str = "pretrain") -> list[Any]:
    """Starts it as two ranks that talk through gloo, and gives the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    settings = [*overrides, "trainer.devices=2", "trainer.strategy=ddp"]
    ranks = [{**master, "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [start_training(command, run_dir, settings, environment=environment) for environment in ranks]


def wait_for(processes: list[Any]) -> list[int]:
    """The exit codes."""
    for process in processes:
        process.join(150)
        assert process.exitcode is not None, "the run hangs"
    return [process.exitcode for process in processes]


class Recorder(pl.Callback):
    """Writes down what each step saw, one line a batch."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with open(f"{self.path}{trainer.global_rank or ''}", "a", newline="") as file:
            sums = [zlib.crc32(batch[name].contiguous().numpy().tobytes()) for name in ("image", "noise")]
            csv.writer(file).writerow([trainer.global_step, trainer.global_rank, batch["position"].tolist(), *sums])


class KillAt(pl.Callback):
    """kill -9 to ourselves in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class PoisonAt(pl.Callback):
    """Makes the target of one step infinite, and keeps the weights from before it."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            torch.save(pl_module.state_dict(), self.path)
            batch["image"][0] = torch.inf


def explain(command: str, overrides: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the smallest run of a command prints, here in this process, when it exits with 2; no traceback."""
    from sami.cli import explain_errors
    from sami.training import train

    with pytest.raises(SystemExit) as stop, explain_errors():
        train(compose_config([*SMALLEST[command], *overrides], name=command))
    printed = "".join(capsys.readouterr())
    assert stop.value.code == 2 and "Traceback" not in printed
    return printed
