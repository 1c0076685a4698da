"""Command-line manners: a user's error becomes a sentence, lines are printed by one rank, a config is flattened."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from tqdm import tqdm

USER_ERRORS = (ValueError, OSError, FloatingPointError, MissingMandatoryValue)  # OSError: disks, permissions, network


@contextmanager
def explain_errors() -> Iterator[None]:
    """Prints the message of a user's error and exits with 2. HYDRA_FULL_ERROR=1 shows the traceback instead."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, USER_ERRORS):
            cause = cause.__cause__  # hydra wraps what a constructor raises, a key that it does not know included
        unknown_key = (
            isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause) and cause is not error
        )
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (isinstance(cause, USER_ERRORS) or unknown_key):
            raise
        print(f"\nerror: {cause}\n(HYDRA_FULL_ERROR=1 shows where.)", file=sys.stderr)
        sys.exit(2)


def print0(text: str) -> None:
    """Prints a line on the first rank, above a progress bar if there is one."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or 0
    if (dist.get_rank() if dist.is_initialized() else int(rank)) == 0:
        tqdm.write(text)


def quiet_lightning() -> None:
    """Lightning's remarks on what it is about to do are left out; its warnings are not."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # raised inside Lightning, about its own call of torch; nothing a user can act on
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    # two to four loaders are enough here, whatever the number of cores
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def flatten(config: DictConfig, *, without: Set[str] = frozenset(), resolve: bool = True) -> dict[str, Any]:
    """A config as {dotted name: plain value}, less the names given and everything below them."""
    flat: dict[str, Any] = {}

    def walk(node: Any, name: str) -> None:
        if name in without:
            return
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{name}.{key}" if name else str(key))
        else:
            flat[name] = node

    walk(OmegaConf.to_container(config, resolve=resolve), "")
    return flat


def choose_device(device: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: another name, or there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
