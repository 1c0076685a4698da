"""SAMI pretraining (arXiv:2312.00863).

python -m sami.pretrain
python -m sami.pretrain +experiment=vit_s data.train='"/data/imagenet/train-{0000..1023}.tar"'
python -m sami.pretrain +experiment=vit_s data=image_folder data.root=/data/photos
torchrun --nproc_per_node=8 -m sami.pretrain +experiment=vit_s ...

The same command again continues the run.
"""

from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sami.data.photos import PhotoData
from sami.entry import explain_errors, flatten, keep_freed_memory, quiet_lightning
from sami.methods.checkpoints import RunCheckpoint, WeightsExport, WholeFileIO, check_contract, trainer_plugins
from sami.methods.logs import TableLogger
from sami.methods.progress import say
from sami.methods.schedule import Plan
from sami.targets.cached import CachedTeacher

# What may differ when a run is continued: where things lie, what machine it is and what is shown, not what is computed.
FREE = {
    *("name", "run_dir", "notice", "trainer", "callbacks", "logger"),
    *("validate_every_epochs", "checkpoint_every_minutes", "checkpoint_every_n_steps", "schedule.batch_size"),
    *("data.train", "data.val", "data.root", "data.folder", "data.num_workers", "data.val_batch_size"),
    *("method.encoder", "method.decoder", "method.teacher"),  # their own sections say what they are
    *("method.compile", "teacher.weights", "teacher.max_batch", "teacher.path", "data.cache", "data.num_views"),
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `pretrain`."""
    with explain_errors():
        pretrain(cfg)


def pretrain(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    quiet_lightning()
    keep_freed_memory()
    if cfg.notice:
        say(cfg.notice)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data: PhotoData = instantiate(cfg.data)
    method = instantiate(cfg.method)
    last = Path(cfg.run_dir, "last.ckpt")
    contract = flatten(cfg, without=FREE)
    contract |= {"photos": data.train_source.fingerprint, "teacher weights": method.teacher.fingerprint}
    contract |= {"views per photo": data.views_per_photo}
    recipe = {name: str(contract[name]) for name in contract if name.startswith(("method.", "teacher.", "decoder."))}
    on_cpu = cfg.trainer.accelerator == "auto" and not torch.cuda.is_available()  # Apple's GPUs have no float64
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        **({"accelerator": "cpu"} if on_cpu else {}),
        logger=list(instantiate(cfg.logger).values()),
        callbacks=[
            *instantiate(cfg.callbacks).values(),
            WeightsExport(str(last.parent), recipe=recipe),
            RunCheckpoint(
                str(last),
                every_minutes=cfg.checkpoint_every_minutes,
                every_n_steps=cfg.checkpoint_every_n_steps,
                contract=contract,
            ),
        ],
        plugins=trainer_plugins(),
    )
    plan: Plan = instantiate(cfg.schedule).plan(num_photos=data.num_photos, world_size=trainer.world_size)
    plan.steer(trainer, data, validate_every_epochs=cfg.validate_every_epochs)
    method.plan = plan
    say(f"{data.num_photos} photos; {plan}")
    if isinstance(method.teacher, CachedTeacher):
        say(f"targets of {method.teacher.description}")
    for logger in trainer.loggers:
        logger.log_hyperparams(contract)

    step = start_step(last, trainer, contract)
    if step >= plan.max_steps:
        say(f"{last.parent} is finished at step {step}. Another name=... starts another run.")
        return
    if data.val_source is None:
        trainer.limit_val_batches = 0
    elif step == 0:
        trainer.validate(method, data, verbose=False)
    trainer.fit(method, data, ckpt_path=str(last) if step else None)
    say(f"finished: the backbone, curves and numbers are in {last.parent}")


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


if __name__ == "__main__":
    main()
