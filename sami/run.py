"""One run of training, started or continued: what the entries that train have in common."""

import fcntl
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sami.entry import keep_freed_memory, quiet_lightning
from sami.methods.checkpoints import RunCheckpoint, WholeFileIO, check_contract, trainer_plugins
from sami.methods.logs import TableLogger
from sami.methods.progress import say
from sami.methods.schedule import Plan

# What may differ when a run is continued: where things lie, what machine it is and what is shown, not what is computed.
FREE = {
    *("name", "run_dir", "notice", "trainer", "callbacks", "logger"),
    *("validate_every_epochs", "checkpoint_every_minutes", "checkpoint_every_n_steps", "schedule.batch_size"),
    *("data.train", "data.val", "data.root", "data.folder", "data.num_workers", "data.val_batch_size"),
}


def prepare(cfg: DictConfig) -> tuple[pl.LightningDataModule, pl.LightningModule]:
    """The data and the method of a run, built after its seed is set."""
    quiet_lightning()
    keep_freed_memory()
    if cfg.notice:
        say(cfg.notice)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    return instantiate(cfg.data), instantiate(cfg.method)


def train(
    cfg: DictConfig,
    data: pl.LightningDataModule,
    method: pl.LightningModule,
    *,
    contract: dict[str, Any],
    export: pl.Callback,
    results: str,
) -> None:
    """Trains to the end of the schedule, from the last checkpoint if there is one.

    Args:
        data: with `num_images`, `setup_stream` and `validates`.
        method: with `plan`, which is set here.
        contract: settings that a continued run must share, by dotted name.
        export: writes what the run is for, with every checkpoint.
        results: what lies in the run's folder at the end, for the last line.

    Raises:
        ValueError: see `start_step` and `hold_folder`.
    """
    last = Path(cfg.run_dir, "last.ckpt")
    on_cpu = cfg.trainer.accelerator == "auto" and not torch.cuda.is_available()  # Apple's GPUs have no float64
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
    plan: Plan = instantiate(cfg.schedule).plan(num_photos=data.num_images, world_size=trainer.world_size)
    plan.steer(trainer, data, validate_every_epochs=cfg.validate_every_epochs)
    method.plan = plan
    lock = hold_folder(last.parent) if trainer.is_global_zero else None
    say(f"{data.num_images} photos; {plan}")
    for logger in trainer.loggers:
        logger.log_hyperparams(contract)

    step = start_step(last, trainer, contract)
    if step >= plan.max_steps:
        say(f"{last.parent} is finished at step {step}. Another name=... starts another run.")
        return
    if not data.validates:
        trainer.limit_val_batches = 0
    elif step == 0:
        trainer.validate(method, data, verbose=False)
    trainer.fit(method, data, ckpt_path=str(last) if step else None)
    say(f"finished: {results} are in {last.parent}")
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
        say(f"{folder} cannot be locked ({error}): see to it that one process alone trains there")
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
    say(f"continuing {last.parent} after step {step}" if step else f"starting {last.parent}")
    for logger in trainer.loggers:
        if isinstance(logger, TableLogger):
            logger.keep_before(step)
    return step
