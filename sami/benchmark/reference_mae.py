"""MAE as its paper describes it, from timm's own parts: what the student's speed is compared with.

B images   H W pixels   N tokens   V visible   D encoder width   C decoder width   E target width
"""

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from sami.models.vit import SIZES
from sami.ops.masking import MaskSplit, take_tokens
from sami.ops.pos_embed import sincos_pos_embed


class PlainMAE(nn.Module):
    """arXiv:2111.06377 without any shortcut: every patch is embedded, then a quarter is kept; every token passes
    every block of the decoder (8 blocks of width 512 with 16 heads).

    For training with MAE's decoder use `SelfAttentionDecoder`. This one exists to be timed.

    Args:
        size: of the encoder, see `SIZES`.
        image_size: pixels per side.
        target_width: E.
    """

    pos_embed: nn.Parameter

    def __init__(self, size: str, image_size: int, target_width: int) -> None:
        super().__init__()
        width, num_heads = SIZES[size]
        self.encoder = VisionTransformer(
            img_size=image_size, embed_dim=width, depth=12, num_heads=num_heads, num_classes=0
        )
        grid_size = self.encoder.patch_embed.grid_size
        for module, channels in ((self.encoder, width), (self, 512)):
            table = sincos_pos_embed(grid_size, channels, num_prefix_tokens=1)  # [1, 1 + N, D or C]
            module.pos_embed = nn.Parameter(table, requires_grad=False)
        self.embed = nn.Linear(width, 512)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 512) * 0.02)
        self.blocks = nn.Sequential(*[Block(512, num_heads=16, qkv_bias=True) for _ in range(8)])
        self.norm = nn.LayerNorm(512)
        self.head = nn.Linear(512, target_width)

    def forward(self, image: Tensor, split: MaskSplit) -> Tensor:
        """[B, 3, H, W] -> prediction [B, N, E], tokens in image order."""
        encoder, pos = self.encoder, self.encoder.pos_embed
        assert pos is not None and encoder.cls_token is not None
        tokens = take_tokens(encoder.patch_embed(image) + pos[:, 1:], split.ids_keep)  # [B, V, D]
        class_token = (encoder.cls_token + pos[:, :1]).expand(len(image), -1, -1)  # [B, 1, D]
        encoded = encoder.norm(encoder.blocks(torch.cat([class_token, tokens], dim=1)))  # [B, 1 + V, D]
        encoded = self.embed(encoded)  # [B, 1 + V, C]
        masked = self.mask_token.to(encoded.dtype).repeat(len(image), split.ids_mask.shape[1], 1)  # [B, M, C]
        tokens = take_tokens(torch.cat([encoded[:, 1:], masked], dim=1), split.ids_restore)  # [B, N, C]
        tokens = torch.cat([encoded[:, :1], tokens], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens)))[:, 1:]
