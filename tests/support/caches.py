"""Real runs of `sami.cache` in processes of their own, and small settings for them."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from conftest import write_folder, write_shards
from training_runs import TINY, compose_config, start_child

from sami.callbacks.metrics_table import read_table

TEACHER = ["teacher=timm", "teacher.name=test_vit", "teacher.weights=random"]  # timm's smallest network
OPTIONS = ["cache.storage=fp32", "cache.num_views=2", "cache.shard_size=6", "cache.batch_size=4", "verify_images=9"]


def image_overrides(root: Path) -> list[str]:
    """Three shards of odd sizes to train on, and a folder to validate."""
    shards = write_shards(root / "shards", [13, 3, 11])
    val = write_folder(root / "val", 5)
    return ["data=images_shards", f"data.train=[{','.join(shards)}]", f"data.val={val}", "data.shuffle_window=2"]


def cache_in(command: str, overrides: list[str], environment: dict[str, str], log: str) -> None:
    """The body of a child process."""
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from sami.cache import __main__ as cache
    from sami.cli import explain_errors

    config = compose_config([f"command={command}", *TINY, *TEACHER, *OPTIONS, *overrides], name="cache")
    with explain_errors():
        cache.COMMANDS[command](cache.Job(config))


def start_cache(
    command: str, overrides: list[str], *, log: Path = Path(os.devnull), environment: dict[str, str] | None = None
) -> Any:
    """Starts it, and gives the process; what it prints goes to `log`."""
    return start_child(cache_in, command, overrides, environment or {}, str(log))


def run_cache(command: str, overrides: list[str], *, log: Path = Path(os.devnull)) -> int:
    """Runs it to its end, and gives the exit code."""
    process = start_cache(command, overrides, log=log)
    process.join(150)
    return process.exitcode


def cache_says(command: str, overrides: list[str], tmp_path: Path) -> tuple[int, str]:
    """Runs it to its end, and gives the exit code and what it printed."""
    log = tmp_path / "said.log"
    log.unlink(missing_ok=True)
    return run_cache(command, overrides, log=log), log.read_text()


def flip_byte(path: Path, offset: int) -> None:
    """Damages a file without changing its size."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def losses(run: Path) -> list[float]:
    """The losses that a run logged."""
    return [value for _, name, value in read_table(run / "metrics.csv") if name in ("train/loss", "val/loss")]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every shard by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("view*.tar"))}


def cached(path: Path) -> list[str]:
    """Overrides that train from this cache."""
    return ["teacher=cached", f"teacher.path={path}"]
