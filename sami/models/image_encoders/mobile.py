"""The image encoders of MobileSAM (TinyViT) and RepViT-SAM, made of timm's networks.

B images   H W pixels   gh gw grid of 16-pixel patches
"""

from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sami.models.image_encoders.neck import ImageEncoder, build_neck


class StagedEncoder(ImageEncoder):
    """timm's network of this name in stages, the last of which stays at 16 pixels per cell, and SAM's neck.

    Args:
        name: timm's.
        stem: timm's name of what comes before the stages.
        drop_path: chance to leave out the last block in training; earlier ones less, in proportion to their depth.
    """

    stages: Any  # a Sequential of timm's stages

    def __init__(self, name: str, stem: str, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name, self.stem_name = name, stem
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        network: Any = timm.create_model(name, num_classes=0, **options)
        self.add_module(stem, getattr(network, stem))
        self.stages, self.neck = network.stages, build_neck(network.num_features)
        self.feature_info = [*network.feature_info[:-1], {**network.feature_info[-1], "reduction": 16}]

    def feature_maps(self, image: Tensor) -> Iterator[Tensor]:
        features = self.get_submodule(self.stem_name)(image)
        for stage in self.stages[:-1]:
            features = self.run(stage, features)
            yield features
        yield self.stages[-1](features)  # whose backward pass comes at once


class TinyViTEncoder(StagedEncoder):
    """MobileSAM's image encoder (arXiv:2306.14289): TinyViT-5M. `drop_path` as of `StagedEncoder`."""

    def __init__(self, *, drop_path: float = 0.0) -> None:
        super().__init__("tiny_vit_5m_224", "patch_embed", drop_path=drop_path)
        self.stages[-1].downsample.conv2.conv.stride = (1, 1)


class RepViTEncoder(StagedEncoder):
    """RepViT-SAM's image encoder (arXiv:2312.05760): timm's repvit_m2_3 as released, or a smaller RepViT."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "stem")
        self.stages[-1].downsample.spatial_downsample.c.stride = (1, 1)


@torch.no_grad()
def fuse_branches(encoder: nn.Module) -> nn.Module:
    """Parallel branches and batch norms of RepViT and TinyViT become single convolutions, in place; same output.

    For inference only: what is fused cannot be trained or saved as what it was. Other encoders stay as they are.

    Raises:
        ValueError: the encoder is in training mode, in which batch norms are no fixed maps.
    """
    if encoder.training:
        raise ValueError("only an encoder in evaluation mode can be fused: call eval() first")
    for name, child in encoder.named_children():
        fuse = getattr(child, "fuse", None)  # timm's, of one block
        if callable(fuse):  # it builds the new one in training mode, in 32 bits and, of TinyViT, on the CPU
            fused = fuse()
            assert isinstance(fused, nn.Module)
            child = fused.to(next(child.parameters())).eval()
            setattr(encoder, name, child)
        fuse_branches(child)
    if isinstance(encoder, ImageEncoder):
        encoder.fused = True
    return encoder
