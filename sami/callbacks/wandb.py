"""Weights & Biases, when asked for."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger

from sami.cli import print0


def wandb_logger(*, project: str, name: str, folder: str, **options: Any) -> WandbLogger:
    """Lightning's W&B logger, which goes offline where there is no login instead of asking for one.

    Without a network set WANDB_MODE=offline.

    Args:
        project: on W&B.
        name: of the run; a continued run goes on under the same.
        folder: of the run; offline runs are kept in it.
        options: for `WandbLogger`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    offline = os.environ.get("WANDB_MODE") == "offline" or not has_login(host)
    if offline:
        print0(f"wandb: no login, or WANDB_MODE=offline. Later: wandb sync {folder}/wandb/offline-run-*")
    run = {"name": name, "id": name.replace("/", "-"), "resume": "allow"}  # a continued run is the same run there
    return WandbLogger(project=project, save_dir=folder, offline=offline, **run, **options)


def has_login(host: str | None) -> bool:
    """Whether W&B would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):  # there is no such file, or it cannot be read
        return False
