"""Weights & Biases, when asked for."""

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pytorch_lightning.loggers import WandbLogger

from sami.cli import print0


def wandb_logger(*, project: str, name: str, folder: str, **options: Any) -> WandbLogger:
    """Lightning's W&B logger, which goes offline where there is no login or no network instead of waiting for them.

    Args:
        project: on W&B.
        name: of the run; a continued run goes on under the same.
        folder: of the run; offline runs are kept in it.
        options: for `WandbLogger`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    reachable = bool(getproxies()) or answers(server.hostname, server.port or 443)  # a proxy answers for others
    offline = os.environ.get("WANDB_MODE") == "offline" or not has_login(server.hostname) or not reachable
    if offline:
        print0(f"wandb: no login or no network, logging offline. Later: wandb sync {folder}/wandb/offline-run-*")
    run = {"name": name, "id": name.replace("/", "-"), "resume": "allow"}  # a continued run is the same run there
    return WandbLogger(project=project, save_dir=folder, offline=offline, **run, **options)


def has_login(host: str) -> bool:
    """Whether W&B would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and host in netrc.read_text()


def answers(host: str, port: int) -> bool:
    """Whether a connection opens within three seconds."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False
