"""SAMI (arXiv:2312.00863): masked-image pretraining against SAM's features, with a cross-attention or MAE's decoder.

B images   H W pixels   N tokens   V visible   M masked, V + M = N   D encoder width   C decoder width   E target width
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp  # pyright: ignore[reportPrivateImportUsage] # timm has no __all__
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sami.models.vit import ViT, init_linears
from sami.ops.masking import MaskSplit, merge_tokens
from sami.ops.pos_embed import sincos_pos_embed


class SAMI(nn.Module):
    """f^h(x) of arXiv:2312.00863, Sec. 3.2: encode visible, decode masked, merge, project.

    Args:
        encoder: the ViT that is kept after pretraining.
        decoder: called as decoder(encoder_width, grid_size), gives `CrossAttentionDecoder` or `SelfAttentionDecoder`.
        target_width: E, the teacher's width.
    """

    def __init__(
        self, encoder: ViT, decoder: Callable[[int, tuple[int, int]], "MaskedDecoder"], target_width: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder(encoder.embed_dim, encoder.grid_size)
        self.head = nn.Linear(self.decoder.width, target_width)
        init_linears(self.head)

    def forward(self, image: Tensor, split: MaskSplit) -> Tensor:
        """[B, 3, H, W] -> prediction [B, N, E], tokens in image order."""
        visible = self.encoder.encode_visible(image, split.ids_keep)  # [B, 1 + V, D]
        tokens = self.decoder(visible, split)  # [B, N, C]
        return self.head(tokens)


class MaskedDecoder(nn.Module):
    """What both decoders share: projection to width C, mask token, positions, a norm at the end; besides, `parts`."""

    blocks: nn.ModuleList | nn.Sequential

    def __init__(self, encoder_width: int, grid_size: tuple[int, int], width: int, **parts: nn.Module) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        for name, part in parts.items():
            self.add_module(name, part)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        init_linears(self)
        nn.init.normal_(self.mask_token, std=0.02)
        self.pos_embed = nn.Parameter(sincos_pos_embed(grid_size, width, num_prefix_tokens=1), requires_grad=False)

    def forward(self, visible: Tensor, split: MaskSplit) -> Tensor:
        """[B, 1 + V, D], class token first, then as `split.ids_keep` -> [B, N, C], tokens in image order."""
        return self.norm(self.decode(self.embed(visible), split))

    def decode(self, encoded: Tensor, split: MaskSplit) -> Tensor:
        """[B, 1 + V, C] -> [B, N, C]."""
        raise NotImplementedError


class CrossAttentionDecoder(MaskedDecoder):
    """phi(g^e {visible} (+) g^d {masked}) of arXiv:2312.00863, Sec. 3.2: only masked tokens are decoded.

    The paper: "queries come from masked tokens, and keys and values derive from both unmasked features from
    encoder and masked features"; decoded and encoded tokens are merged and re-ordered. It states 8 blocks of width
    512 "as in MAE"; MAE's decoder has 16 heads. What it leaves open is settled here like this:

    - Pre-norm blocks of cross-attention and MLP, no self-attention of its own: with context "all" the masked tokens
      already are among the keys.
    - Encoder tokens pass one linear layer to width C before they are merged, since one head reads both. As keys and
      values they carry their position; in the merge they do not, so they stay the encoder's output.
    - The class token is an anchor like any other, or it would learn nothing in the last encoder block.

    Args:
        encoder_width, grid_size, width, depth, num_heads: D, (gh, gw), C, number of blocks, heads of each.
        context: what keys and values come from. "all": encoder output and the current masked tokens (the paper's
            words). "encoder": encoder output alone, cheaper.

    Raises:
        ValueError: unknown `context`.
    """

    anchor_norm: nn.LayerNorm

    def __init__(
        self,
        encoder_width: int,
        grid_size: tuple[int, int],
        *,
        width: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        context: str = "all",
    ) -> None:
        if context not in ("all", "encoder"):
            raise ValueError(f"context={context!r}: choose all or encoder")
        blocks = [CrossAttentionBlock(width, num_heads, attend_masked=context == "all") for _ in range(depth)]
        anchor_norm = nn.LayerNorm(width, eps=1e-6)
        super().__init__(encoder_width, grid_size, width, anchor_norm=anchor_norm, blocks=nn.ModuleList(blocks))

    def decode(self, encoded: Tensor, split: MaskSplit) -> Tensor:
        """Only the masked tokens pass the blocks."""
        class_pos, pos = self.pos_embed[:, :1], self.pos_embed[0, 1:]  # [1, 1, C], [N, C]
        anchor_pos = torch.cat([class_pos.expand(len(encoded), -1, -1), pos[split.ids_keep]], dim=1)
        anchors = self.anchor_norm(encoded + anchor_pos)  # [B, 1 + V, C]
        masked = self.mask_token + pos[split.ids_mask]  # [B, M, C]
        for block in self.blocks:
            masked = block(masked, anchors)
        return merge_tokens(encoded[:, 1:], masked.to(encoded.dtype), split)


class CrossAttentionBlock(nn.Module):
    """x + attention(norm(x) -> anchors and norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, num_heads: int, *, attend_masked: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"a decoder of width={width} does not divide into num_heads={num_heads}")
        self.num_heads, self.attend_masked = num_heads, attend_masked
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, masked: Tensor, anchors: Tensor) -> Tensor:
        """[B, M, C], [B, 1 + V, C] -> [B, M, C]; `anchors` are normalised already."""
        queries = self.norm1(masked)  # [B, M, C]
        context = torch.cat([anchors, queries.to(anchors.dtype)], dim=1) if self.attend_masked else anchors
        q = self.q(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, M, C/heads]
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, C/heads]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, M, C]
        masked = masked + self.proj(attended)
        return masked + self.mlp(self.norm2(masked))


class SelfAttentionDecoder(MaskedDecoder):
    """MAE's decoder (arXiv:2111.06377): every token passes every block. The ablation of arXiv:2312.00863, Sec. 4.4."""

    def __init__(
        self, encoder_width: int, grid_size: tuple[int, int], *, width: int = 512, depth: int = 8, num_heads: int = 16
    ) -> None:
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)  # timm annotates a class, and takes what makes a norm
        blocks = [Block(width, num_heads, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth)]
        super().__init__(encoder_width, grid_size, width, blocks=nn.Sequential(*blocks))

    def decode(self, encoded: Tensor, split: MaskSplit) -> Tensor:
        """All tokens pass the blocks."""
        masked = self.mask_token.to(encoded.dtype).expand(len(encoded), split.ids_mask.shape[1], -1)  # [B, M, C]
        tokens = merge_tokens(encoded[:, 1:], masked, split)  # [B, N, C]
        tokens = torch.cat([encoded[:, :1], tokens], dim=1) + self.pos_embed
        return self.blocks(tokens)[:, 1:]
