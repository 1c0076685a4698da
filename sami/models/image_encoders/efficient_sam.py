"""EfficientSAM's image encoder: the pretrained student, looking at a whole photo (arXiv:2312.00863, Sec. 3.3).

B images   H W pixels   gh gw grid of 16-pixel patches, N = gh*gw   D width
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sami.models.neck import build_neck
from sami.models.prompt_encoder import PATCH_SIZE
from sami.models.vit import SIZES, init_linears
from sami.ops.attention import attend
from sami.ops.pos_embed import sincos_pos_embed
from sami.ops.products import linear

DEPTH = 12
CPU_ROWS = 512  # tokens at a time, whose hidden layer stays in the caches
PRETRAINED_GRID = (14, 14)  # of 224 pixels


class SelfAttention(nn.Module):
    """Attention of all tokens to all; timm's parameter names."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = linear(tokens, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return linear(attend(q, k, v).transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)


class MLP(nn.Module):
    """Two linear layers with GELU between; timm's parameter names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        hidden = F.gelu(linear(tokens, self.fc1.weight, self.fc1.bias))
        return linear(hidden, self.fc2.weight, self.fc2.bias)


class Block(nn.Module):
    """A pre-norm transformer block; timm's parameter names."""

    def __init__(self, width: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.norm1, self.attn = norm(width), SelfAttention(width, num_heads)
        self.norm2, self.mlp = norm(width), MLP(width, 4 * width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        if tokens.device.type == "cpu" and not self.training:
            return torch.cat([self.transform(rows) for rows in tokens.split(CPU_ROWS, dim=1)], dim=1)
        return self.transform(tokens)

    def transform(self, tokens: Tensor) -> Tensor:
        """[B, n, D] -> [B, n, D]: what each token does on its own."""
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class EfficientViT(nn.Module):
    """Plain ViT without class token and final norm, and SAM's neck; the names of EfficientSAM's released files.

    The position table is that of pretraining, 14x14 and the class token's row, which is never used; it is resized
    (bicubic) to the grid of the image in every forward, and trained as it is.

    Args:
        size: "tiny", "small" or "base".
        drop_path: chance to leave out the last block in training; earlier ones less, in proportion to their depth.

    Attributes:
        checkpoint: in training, recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: unknown `size`.
    """

    def __init__(self, size: str, *, drop_path: float = 0.0) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size={size!r}: choose one of {', '.join(SIZES)}")
        self.size = size
        width, num_heads = SIZES[size]
        self.checkpoint = False
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(sincos_pos_embed(PRETRAINED_GRID, width, num_prefix_tokens=1))
        rates = [drop_path * number / (DEPTH - 1) for number in range(DEPTH)]
        self.blocks = nn.ModuleList(Block(width, num_heads, rate) for rate in rates)
        self.neck = build_neck(width)
        init_linears(self.patch_embed)
        init_linears(self.blocks)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw].

        Raises:
            ValueError: the image is not a whole number of patches.
        """
        patches = self.patch_embed(image)  # [B, D, gh, gw]
        tokens = (patches + self.position_table(patches.shape[2:])).flatten(2).transpose(1, 2)  # [B, N, D]
        for block in self.blocks:
            if self.checkpoint and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.neck(tokens.transpose(1, 2).unflatten(2, patches.shape[2:]))

    def position_table(self, grid_size: tuple[int, int]) -> Tensor:
        """[1, D, gh, gw]."""
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, PRETRAINED_GRID)
        return F.interpolate(table.float(), tuple(grid_size), mode="bicubic")


class PatchEmbed(nn.Module):
    """One matrix over flattened patches; timm's parameter names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, gh, gw].

        Raises:
            ValueError: the image is not a whole number of patches.
        """
        H, W = image.shape[-2:]
        if H % PATCH_SIZE or W % PATCH_SIZE:
            raise ValueError(f"an image of {H}x{W} pixels is not a whole number of patches of {PATCH_SIZE} pixels")
        return self.proj(image)
