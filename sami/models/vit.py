"""Plain ViT (timm's) that encodes any subset of its patches: the student of masked-image pretraining.

B images   H W pixels   p patch size   gh gw token grid, N = gh*gw   V visible tokens   D width
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sami.ops.pos_embed import sincos_pos_embed

SIZES = {  # width, heads; all are 12 blocks deep (arXiv:2312.00863, Sec. 4.1: ViT-Tiny, ViT-Small, ViT-Base)
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
}


class ViT(VisionTransformer):
    """timm's ViT with class token, parameter names unchanged: its state dict loads strictly into
    `timm.create_model(f"vit_{size}_patch16_224", num_classes=0)`.

    Args:
        size: "tiny", "small" or "base".
        image_size: pixels per side of the square images.
        patch_size: pixels per side of a patch.
        pos_embed: "sincos", fixed as in MAE (the default: the paper says that SAMI is "very close to MAE" and does
            not say which it used), or "learned".

    Raises:
        ValueError: unknown `size` or `pos_embed`, or `image_size` is not a multiple of `patch_size`.
    """

    cls_token: nn.Parameter  # timm's ViTs may have none
    pos_embed: nn.Parameter

    def __init__(self, size: str, *, image_size: int = 224, patch_size: int = 16, pos_embed: str = "sincos") -> None:
        if size not in SIZES:
            raise ValueError(f"size={size!r}: choose one of {', '.join(SIZES)}")
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
        if pos_embed not in ("sincos", "learned"):
            raise ValueError(f"pos_embed={pos_embed!r}: choose sincos or learned")
        width, num_heads = SIZES[size]
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=12,
            num_heads=num_heads,
            num_classes=0,
        )
        self.size, self.patch_size = size, patch_size
        self.grid_size: tuple[int, int] = self.patch_embed.grid_size
        self.num_tokens: int = self.patch_embed.num_patches
        init_linears(self)
        nn.init.normal_(self.cls_token, std=0.02)  # as MAE; timm's own 1e-6 is next to nothing
        if pos_embed == "sincos":
            table = sincos_pos_embed(self.grid_size, width, num_prefix_tokens=1)  # [1, 1 + N, D]
            self.pos_embed = nn.Parameter(table, requires_grad=False)

    def encode_visible(self, image: Tensor, ids_keep: Tensor) -> Tensor:
        """[B, 3, H, W], [B, V] -> [B, 1 + V, D]: class token, then the visible tokens in the order of `ids_keep`.

        Equal to the rows that `forward_features` would give if attention saw these tokens only. Patches are
        gathered before they are embedded, so hidden pixels cost nothing.
        """
        patches = take_patches(image, ids_keep, patch_size=self.patch_size)  # [B, V, 3*p*p]
        embed = self.patch_embed.proj
        tokens = F.linear(patches, embed.weight.flatten(1), embed.bias) + self.pos_embed[0, 1:][ids_keep]  # [B, V, D]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(image), -1, -1)  # [B, 1, D]
        tokens = torch.cat([class_token.to(tokens.dtype), tokens], dim=1)
        return self.norm(self.blocks(tokens))


def take_patches(image: Tensor, ids: Tensor, *, patch_size: int) -> Tensor:
    """[B, 3, H, W], [B, V] -> [B, V, 3*p*p]: the pixels of these patches, flattened as a convolution's weight is."""
    B, C, H, W = image.shape
    gh, gw, p = H // patch_size, W // patch_size, patch_size
    grid = image.reshape(B, C, gh, p, gw, p).permute(0, 2, 4, 1, 3, 5)  # [B, gh, gw, C, p, p], a view
    batch = torch.arange(B, device=image.device).unsqueeze(1)
    return grid[batch, ids // gw, ids % gw].flatten(2)


def init_linears(module: nn.Module) -> None:
    """MAE's initialisation in place: Xavier-uniform matrices, zero biases, LayerNorms at one and zero.

    A patch embedding is one matrix over flattened patches and is initialised as such.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(child.weight.data.flatten(1))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
