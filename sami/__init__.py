"""Masked-image pretraining of small ViTs against SAM's features, and segmenting with them (EfficientSAM,
arXiv:2312.00863)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sami.models.build import build_sam, sam_model_registry
    from sami.predict.predictor import SamPredictor

__all__ = ["SamPredictor", "build_sam", "sam_model_registry"]
HOMES = {
    "SamPredictor": "sami.predict.predictor",
    "build_sam": "sami.models.build",
    "sam_model_registry": "sami.models.build",
}


def __getattr__(name: str) -> object:
    """Public names come with torch and timm, which take seconds to import: only when they are asked for."""
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        try:
            return metadata.version("sami")
        except metadata.PackageNotFoundError:
            raise AttributeError("the version of sami is known once it is installed: pip install -e .") from None
    if name not in HOMES:
        raise AttributeError(f"module 'sami' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
