"""Real runs of `sami.finetune` in processes of their own."""

from pathlib import Path
from typing import Any

from training_runs import start_run, wait_for

TINY = [
    *("model.image_size=32", "data=masks_sa1b", "data.mask_size=16", "data.num_masks=3", "data.num_val_masks=2"),
    *("protocol.num_clicks=1", "protocol.num_refinements=0", "data.num_workers=0", "data.val_batch_size=3"),
    *("schedule.global_batch_size=4", "schedule.batch_size=2", "schedule.epochs=2", "schedule.warmup_epochs=0.4"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "~callbacks.progress"),
    *("+trainer.enable_progress_bar=false", "notice=null", "checkpoint_every_n_steps=3", "validate_every_epochs=1"),
    *("callbacks.pictures.num_images=2",),
]


def start_finetune(run_dir: Path, overrides: list[str], **how: Any) -> Any:
    """`start_run` of a tiny fine-tuning."""
    return start_run("finetune", [*TINY, f"run_dir={run_dir}", *overrides], **how)


def run_finetune(run_dir: Path, overrides: list[str]) -> int:
    """Runs `sami.finetune` to its end, and gives the exit code (negative: the signal that ended it)."""
    return wait_for([start_finetune(run_dir, overrides)])[0]
