"""Masked-image pretraining of small ViTs against SAM's features, and segmenting with them (EfficientSAM,
arXiv:2312.00863)."""

from importlib import import_module

PUBLIC = {
    "build_sam": "sami.models.build",
    "sam_model_registry": "sami.models.build",
    "SamPredictor": "sami.predict.predictor",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> object:
    """Public names come with torch and timm, which take seconds to import: only when they are asked for."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'sami' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
