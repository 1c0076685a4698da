"""EfficientSAM's image encoder: the pretrained student, looking at a whole image (arXiv:2312.00863, Sec. 3.3).

B images   H W pixels   gh gw grid of 16-pixel patches, N = gh*gw   D width
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp, PatchEmbed  # pyright: ignore[reportPrivateImportUsage] # timm has no __all__
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sami.models.image_encoders.neck import ImageEncoder, build_neck
from sami.models.prompt_encoder import PATCH_SIZE
from sami.models.vit import SIZES, init_linears
from sami.ops.cpu_kernels import attend, linear
from sami.ops.pos_embed import sincos_pos_embed

DEPTH = 12
CPU_ROWS = 512  # tokens at a time, whose hidden layer stays in the caches
PRETRAINED_GRID = (14, 14)  # of 224 pixels


class EfficientSAMEncoder(ImageEncoder):
    """Plain ViT of timm's blocks without class token and final norm, and SAM's neck; the names of EfficientSAM's files.

    The position table is that of pretraining, 14x14 and the class token's row, which is never used; it is resized
    (bicubic) to the grid of the image in every forward, and trained as it is.

    Args:
        size: "tiny", "small" or "base".
        drop_path: chance to leave out the last block in training; earlier ones less, in proportion to their depth.

    Raises:
        ValueError: unknown `size`; in `forward`, the image is not a whole number of patches.
    """

    def __init__(self, size: str, *, drop_path: float = 0.0) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size={size!r}: choose one of {', '.join(SIZES)}")
        self.size = size
        width, num_heads = SIZES[size]
        self.patch_embed = PatchEmbed(None, PATCH_SIZE, embed_dim=width, flatten=False)
        self.pos_embed = nn.Parameter(sincos_pos_embed(PRETRAINED_GRID, width, num_prefix_tokens=1))
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)  # timm annotates a class, and takes what makes a norm
        rates = [drop_path * number / (DEPTH - 1) for number in range(DEPTH)]
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm_layer) for rate in rates)
        )
        block: Any  # timm's Block
        for block in self.blocks:
            block.attn.forward, block.mlp.forward = partial(attention, block.attn), partial(mlp_by_rows, block.mlp)
        self.neck = build_neck(width)
        self.feature_info = [
            {"num_chs": width, "reduction": PATCH_SIZE, "module": f"blocks.{number}"} for number in range(DEPTH)
        ]
        init_linears(self.patch_embed)
        init_linears(self.blocks)

    def position_table(self, grid_size: tuple[int, int]) -> Tensor:
        """[1, D, gh, gw]."""
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, PRETRAINED_GRID)
        return F.interpolate(table.float(), tuple(grid_size), mode="bicubic")

    def feature_maps(self, image: Tensor) -> Iterator[Tensor]:
        H, W = image.shape[-2:]
        if H % PATCH_SIZE or W % PATCH_SIZE:
            raise ValueError(f"an image of {H}x{W} pixels is not a whole number of patches of {PATCH_SIZE} pixels")
        patches = self.patch_embed(image)  # [B, D, gh, gw]
        grid_size = (H // PATCH_SIZE, W // PATCH_SIZE)
        tokens = (patches + self.position_table(grid_size)).flatten(2).transpose(1, 2)  # [B, N, D]
        for block in self.blocks:
            tokens = self.run(block, tokens)
            yield tokens.transpose(1, 2).unflatten(2, grid_size)


def attention(layer: Attention, tokens: Tensor, **_: object) -> Tensor:
    """timm's `Attention.forward` by the fastest kernels there are, [B, N, D] -> [B, N, D]; its blocks pass no mask."""
    qkv = linear(tokens, layer.qkv.weight, layer.qkv.bias)
    q, k, v = qkv.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return linear(attend(q, k, v).transpose(1, 2).flatten(2), layer.proj.weight, layer.proj.bias)


def mlp_by_rows(layer: Mlp, tokens: Tensor) -> Tensor:
    """timm's `Mlp.forward`, [B, N, D] -> [B, N, D]; for inference on a CPU some tokens at a time."""
    inference = tokens.device.type == "cpu" and not layer.training
    parts = []
    for rows in tokens.split(CPU_ROWS, dim=1) if inference else (tokens,):
        hidden = F.gelu(linear(rows, layer.fc1.weight, layer.fc1.bias))
        parts.append(linear(hidden, layer.fc2.weight, layer.fc2.bias))
    return torch.cat(parts, dim=1) if inference else parts[0]
