"""Files with the names and shapes of released checkpoints, and weights that any machine makes from the names."""

import json
from pathlib import Path

import numpy as np
import torch
from golden.seeded import seeded_array

GOLDEN = Path(__file__).parents[1] / "parity/golden"


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Parameter names of a released file and their shapes."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / f"{name}.keys.json").read_text()).items()}


def write_checkpoint(name: str, folder: Path) -> Path:
    """`name` as it was released; EfficientSAM's files have their tensors under "model"."""
    weights = {key: torch.from_numpy(seeded_array(key, shape)) for key, shape in shapes_of(name).items()}
    path = folder / f"{name}.pt"
    torch.save({"model": weights} if name.startswith("efficient") else weights, path)
    return path


def golden_of(name: str) -> dict[str, np.ndarray]:
    """The reference's outputs."""
    return dict(np.load(GOLDEN / f"{name}.npz"))
