"""From a backbone's width to the 256 channels of SAM's decoder."""

from timm.layers import LayerNorm2d
from torch import nn

EMBEDDING_WIDTH = 256


def build_neck(width: int) -> nn.Sequential:
    """[B, width, gh, gw] -> [B, 256, gh, gw]: the neck of SAM's image encoder, as all its successors kept it."""
    return nn.Sequential(
        nn.Conv2d(width, EMBEDDING_WIDTH, 1, bias=False),
        LayerNorm2d(EMBEDDING_WIDTH),
        nn.Conv2d(EMBEDDING_WIDTH, EMBEDDING_WIDTH, 3, padding=1, bias=False),
        LayerNorm2d(EMBEDDING_WIDTH),
    )
