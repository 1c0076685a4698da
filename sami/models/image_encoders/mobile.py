"""The image encoders of SAM, MobileSAM and RepViT-SAM, out of timm's parts; EfficientSAM's is in `efficient_vit`.

B images   H W pixels   gh gw grid of 16-pixel patches
"""

from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from sami.models.neck import build_neck
from sami.models.samvit import SAM, attend


def build_sam_vit(name: str, *, drop_path: float = 0.0) -> nn.Module:
    """timm's samvit for one of `sami.models.samvit.SAM`, [B, 3, H, W] -> [B, 256, gh, gw]; see `load_sam` there."""
    norm_layer = partial(nn.LayerNorm, eps=1e-6)  # SAM's; timm has 1e-5
    options = {"num_classes": 0, "global_pool": "", "norm_layer": norm_layer, "drop_path_rate": drop_path}
    network = timm.create_model(SAM[name][0], **options)
    for block in network.blocks:
        block.attn.forward = partial(attend, block.attn)
    return network


class MobileViT(nn.Module):
    """MobileSAM's encoder (arXiv:2306.14289): TinyViT-5M whose last stage stays at 16 pixels, and SAM's neck.

    Attributes:
        checkpoint: in training, recompute the stages in the backward pass instead of keeping their activations.
    """

    def __init__(self, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name = "tiny_vit_5m_224"  # timm's
        network = timm.create_model(self.name, num_classes=0, drop_path_rate=drop_path)
        self.checkpoint = False
        self.patch_embed, self.stages = network.patch_embed, network.stages
        self.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = build_neck(network.num_features)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw]."""
        return self.neck(run_stages(self, self.patch_embed(image)))


class RepViT(nn.Module):
    """RepViT-SAM's encoder (arXiv:2312.05760): RepViT whose last stage stays at 16 pixels, and SAM's neck.

    Args:
        name: timm's: repvit_m2_3 as released, or a smaller one.

    Attributes:
        checkpoint: as of `MobileViT`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        network = timm.create_model(name, num_classes=0)
        self.checkpoint = False
        self.stem, self.stages = network.stem, network.stages
        self.stages[-1].downsample.spatial_downsample.c.stride = (1, 1)
        self.neck = build_neck(network.num_features)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw]."""
        return self.neck(run_stages(self, self.stem(image)))


def run_stages(encoder: MobileViT | RepViT, features: Tensor) -> Tensor:
    """All stages, their activations kept or recomputed in the backward pass."""
    if encoder.checkpoint and encoder.training:
        return checkpoint_sequential(encoder.stages, len(encoder.stages), features, use_reentrant=False)
    return encoder.stages(features)


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
        if hasattr(child, "fuse"):  # timm's, of one block
            # which builds the new one in training mode, in 32 bits and, of TinyViT, on the CPU
            child = child.fuse().to(next(child.parameters())).eval()
            setattr(encoder, name, child)
        fuse_branches(child)
    encoder.fused = True
    return encoder
