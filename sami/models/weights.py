"""Weights of networks: files read safely, loaded strictly, downloaded, or random; digests of files and weights."""

import argparse
import hashlib
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sami.files import whole_file

Network = TypeVar("Network", bound=nn.Module)
SHOWN = 4  # names of each kind in an error message


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, on the CPU and mapped from the file where its format allows it.

    Nothing in the file is executed. A top-level "model" or "state_dict" entry, as MAE's and timm's training files
    have it, is unwrapped.

    Raises:
        ValueError: there is no such file, it cannot be read as a checkpoint, it holds objects other than tensors and
            plain settings, or no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # MAE's training files keep their arguments
                # files older than torch 1.6 are no zip archives and cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything
        # torch's first sentence; its second advises to run the code
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, incomplete, not a weight file, or holds objects "
            f"that would run code ({reason}). Download it again, or save its tensors alone"
        ) from error
    for entry in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name: give a state dict")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise ValueError(f"{path} holds entries that are no tensors by name: {_some(others)}. Give a state dict")
    return dict(content)


def load_strictly(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Load every entry into `module`, and leave none of its own as it was; `source` is for the message.

    A module on the meta device takes the tensors of `state_dict` as they are, in its own dtype, without a copy.

    Raises:
        ValueError: names are missing or left over, or shapes differ; nothing has been loaded then.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shapes = [
        f"{name} is {list(state_dict[name].shape)}, needed {list(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if missing or unexpected or shapes:
        found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{source} does not fit {type(module).__name__}. {found}. Give the file of this very model")
    on_meta = any(value.is_meta for value in own.values())
    if on_meta:
        state_dict = {name: state_dict[name].to(value.dtype) for name, value in own.items()}
    module.load_state_dict(state_dict, assign=on_meta)


def download(build: Callable[[], Network], *, advice: str, option: str) -> Network:
    """What `build` returns; whatever stops its download becomes a ConnectionError that says what to do instead.

    Args:
        advice: what to fetch by hand.
        option: the argument that was "hub" and can be a path.
    """
    try:
        return build()
    except Exception as error:  # timm, huggingface_hub and their HTTP clients each raise their own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"{option}=hub: the weights could not be downloaded ({reason}). Without network access, {advice}, "
            f"and set {option} to the path of that file"
        ) from error


def build_random(build: Callable[[], Network], *, announce: str | None) -> Network:
    """What `build` returns, initialised from a fixed seed that leaves the global one alone.

    Args:
        announce: the name to warn about; None where the weights are about to be loaded.
    """
    if announce is not None:
        warnings.warn(f"{announce} has random weights: its features mean nothing", stacklevel=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def weights_digest(module: nn.Module) -> str:
    """A fingerprint of all weights, names and shapes: 16 hexadecimal digits, the same wherever the file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_weights(weights: Mapping[str, Tensor], path: str | Path, *, metadata: dict[str, str]) -> None:
    """Writes a .safetensors file with strings in its header; under its name only when it is complete."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with whole_file(Path(path)) as file:
        file.write(save(tensors, metadata=metadata))


def file_digest(path: str | None) -> str | None:
    """A fingerprint of a file's bytes: 16 hexadecimal digits, the same wherever it lies. "hub" stands for itself."""
    if path in (None, "hub"):
        return path
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
