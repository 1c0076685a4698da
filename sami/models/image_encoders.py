"""The image encoders of SAM and MobileSAM, out of timm's parts; EfficientSAM's is in `efficient_vit`.

B images   H W pixels   gh gw grid of 16-pixel patches
"""

from functools import partial

import timm
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
        network = timm.create_model("tiny_vit_5m_224", num_classes=0, drop_path_rate=drop_path)
        self.checkpoint = False
        self.patch_embed, self.stages = network.patch_embed, network.stages
        self.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = build_neck(network.num_features)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw]."""
        features = self.patch_embed(image)
        if self.checkpoint and self.training:
            features = checkpoint_sequential(self.stages, len(self.stages), features, use_reentrant=False)
        else:
            features = self.stages(features)
        return self.neck(features)
