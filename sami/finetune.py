"""Fine-tuning EfficientSAM on photos with masks (arXiv:2312.00863, Sec. 4.1).

python -m sami.finetune
python -m sami.finetune +experiment=finetune/vit_s model.backbone=runs/vit_s/backbone.safetensors \
    data.train='"/data/sa1b/sa_{000000..000999}.tar"'
python -m sami.finetune +experiment=finetune/vit_s data=coco data.train.annotations=/coco/train.json \
    data.train.images=/coco/train model.backbone=...
torchrun --nproc_per_node=8 -m sami.finetune +experiment=finetune/vit_s ...

The same command again continues the run.
"""

from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sami.data.masked_photos import MaskData
from sami.entry import explain_errors, flatten, keep_freed_memory, quiet_lightning
from sami.methods.checkpoints import RunCheckpoint, trainer_plugins
from sami.methods.progress import say
from sami.methods.schedule import Plan
from sami.methods.segmenter import SegmenterExport, file_digest
from sami.pretrain import start_step

# What may differ when a run is continued: where things lie, what machine it is and what is shown, not what is computed.
FREE = {
    *("name", "run_dir", "notice", "trainer", "callbacks", "logger"),
    *("validate_every_epochs", "checkpoint_every_minutes", "checkpoint_every_n_steps", "schedule.batch_size"),
    *("data.train", "data.val", "data.folder", "data.num_workers", "data.val_batch_size", "data.num_val_masks"),
    *("method.model", "method.protocol"),  # their own sections say what they are
    *("method.checkpoint_activations", "model.checkpoint", "model.backbone", "model.decoder_checkpoint"),
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `finetune`."""
    with explain_errors():
        finetune(cfg)


def finetune(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    quiet_lightning()
    keep_freed_memory()
    if cfg.notice:
        say(cfg.notice)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data: MaskData = instantiate(cfg.data)
    method = instantiate(cfg.method)
    last = Path(cfg.run_dir, "last.ckpt")
    contract = flatten(cfg, without=FREE) | {"photos": data.train_source.fingerprint}
    for file in ("checkpoint", "backbone", "decoder_checkpoint"):
        contract[f"model.{file}"] = file_digest(cfg.model[file])
    recipe = {name: str(value) for name, value in contract.items() if name.startswith(("model.", "method."))}
    on_cpu = cfg.trainer.accelerator == "auto" and not torch.cuda.is_available()  # Apple's GPUs have no float64
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        **({"accelerator": "cpu"} if on_cpu else {}),
        logger=list(instantiate(cfg.logger).values()),
        callbacks=[
            *instantiate(cfg.callbacks).values(),
            SegmenterExport(str(last.with_name("segmenter.safetensors")), recipe=recipe),
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
    for logger in trainer.loggers:
        logger.log_hyperparams(contract)

    step = start_step(last, trainer, contract)
    if step >= plan.max_steps:
        say(f"{last.parent} is finished at step {step}. Another name=... starts another run.")
        return
    if not data.val_sources:
        trainer.limit_val_batches = 0
    elif step == 0:
        trainer.validate(method, data, verbose=False)
    trainer.fit(method, data, ckpt_path=str(last) if step else None)
    say(f"finished: the segmenter, curves and numbers are in {last.parent}")


if __name__ == "__main__":
    main()
