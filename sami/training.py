"""One run of training, started or continued: what the entries that train have in common."""

import fcntl
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sami.callbacks.checkpoint import CONTRACT_FORMAT, RunCheckpoint, WeightsExport, WholeFileIO, trainer_plugins
from sami.callbacks.metrics_table import TableLogger
from sami.cli import flatten, print0, quiet_lightning
from sami.data.loading import ImageData
from sami.methods.base import Method
from sami.methods.schedule import RunLength
from sami.ops.cpu_kernels import keep_freed_memory

DESCRIBING = ("model.", "decoder.", "teacher", "method.")  # settings that headers of weights keep


def train(cfg: DictConfig) -> None:
    """Trains what a configuration describes to the end of its schedule, from the last checkpoint if there is one.

    Raises:
        ValueError: see `start_step`, `hold_folder`, and what the configuration builds.
    """
    if missing := [name for name, value in flatten(cfg, resolve=False).items() if value == "???"]:
        raise ValueError(f"not given, and there is no default: {', '.join(missing)}. --help says what they are")
    quiet_lightning()
    keep_freed_memory()
    if cfg.notice:
        print0(cfg.notice)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data: ImageData = instantiate(cfg.data)
    method: Method = instantiate(cfg.method)
    if remark := method.remark(data):
        print0(remark)
    contract = method.contract(flatten(cfg, without=method.free_settings), data)
    metadata = {name: str(value) for name, value in contract.items() if name.startswith(DESCRIBING)}
    last = Path(cfg.run_dir, "last.ckpt")
    on_cpu = cfg.trainer.accelerator == "auto" and not torch.cuda.is_available()  # Apple's GPUs have no float64
    export = WeightsExport(cfg.run_dir, metadata=metadata)
    checkpoint = RunCheckpoint(
        str(last),
        every_minutes=cfg.checkpoint_every_minutes,
        every_n_steps=cfg.checkpoint_every_n_steps,
        contract=contract,
    )
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        **({"accelerator": "cpu"} if on_cpu else {}),
        logger=list(instantiate(cfg.logger).values()),
        callbacks=[*instantiate(cfg.callbacks).values(), export, checkpoint],
        plugins=trainer_plugins(),
    )
    length: RunLength = instantiate(cfg.schedule).resolve(num_images=data.num_images, world_size=trainer.world_size)
    length.apply_to(trainer, validate_every_epochs=cfg.validate_every_epochs)
    data.setup_stream(batch_size=length.batch_size, epoch_size=length.epoch_size, num_batches=length.num_batches)
    method.configure(length)
    lock = hold_folder(last.parent) if trainer.is_global_zero else None
    print0(f"{data.num_images} images; {length}")
    for logger in trainer.loggers:
        logger.log_hyperparams(contract)

    step = start_step(last, trainer, contract)
    if step >= length.max_steps:
        print0(f"{last.parent} is finished at step {step}. Another name=... starts another run.")
        return
    if not data.validates:
        trainer.limit_val_batches = 0
    elif step == 0:
        trainer.validate(method, data, verbose=False)
    trainer.fit(method, data, ckpt_path=str(last) if step else None)
    print0(f"finished: {method.results} are in {last.parent}")
    if lock:
        lock.close()


def hold_folder(folder: Path) -> TextIO:
    """Keeps other processes from training in `folder` while the result is open and this process lives.

    Raises:
        ValueError: another one trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept alive by forked loading processes
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(f"another process is training in {folder}: wait for it, or give another name=") from error
    except OSError as error:  # some network file systems have no locks
        print0(f"{folder} cannot be locked ({error}): see to it that one process alone trains there")
    return lock


def start_step(last: Path, trainer: pl.Trainer, contract: dict[str, Any]) -> int:
    """The optimiser step that the run continues from, 0 for a new one. Says which.

    Raises:
        ValueError: the checkpoint cannot be read, or belongs to a run with other settings.
    """
    step = 0
    if last.exists():
        checkpoint = WholeFileIO().load_checkpoint(last)
        check_contract(last, checkpoint, contract)
        step = checkpoint["global_step"]
    print0(f"continuing {last.parent} after step {step}" if step else f"starting {last.parent}")
    for logger in trainer.loggers:
        if isinstance(logger, TableLogger):
            logger.keep_before(step)
    return step


def check_contract(path: Path, checkpoint: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the settings that `RunCheckpoint` kept in a checkpoint with this run's.

    Raises:
        ValueError: they differ, and the message lists all differences; or another version wrote them.
    """
    kept = checkpoint["callbacks"]["RunCheckpoint"]
    if kept.get("contract_format") != CONTRACT_FORMAT:
        raise ValueError(
            f"{path} was written by another version of sami, whose settings have other names: finish this run with "
            "the version that began it, or start another with name=... Its weights (*.safetensors) can be used by both."
        )
    before = kept["contract"]
    differences = [
        f"{name}: {before.get(name)} in the checkpoint, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to a run with other settings:\n  "
            + "\n  ".join(differences)
            + "\nUse the same settings to continue it, or another name=... to start a new run."
        )
