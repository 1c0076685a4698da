"""SAM's two-way transformer (arXiv:2304.02643, App. A), arranged for many prompts on one image.

B images   Q prompts per image   b some of the B*Q prompts   T tokens of a prompt   N image tokens   C width
h heads   d width of a head
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sami.models.two_way_attention import Attention, ImageToToken, TokenToImage


class TwoWayLayer(nn.Module):
    """Self-attention of tokens, tokens to image, MLP of tokens, image to tokens; a norm after each.

    Args:
        first: of the transformer, where tokens get no positions, having just been made of them.
        variant: in SAM the first layer's self-attention replaces the tokens, and later ones add positions to queries
            and keys alone. In EfficientSAM there is always a residual, and positions stay in the tokens.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, *, first: bool, variant: str) -> None:
        super().__init__()
        self.first, self.variant = first, variant
        self.self_attn = Attention(width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = TokenToImage(width, num_heads, shrink=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TokenMLP(width, mlp_width, nn.ReLU() if variant == "sam" else nn.GELU())
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = ImageToToken(width, num_heads, shrink=2)

    def attend_tokens(self, tokens: Tensor, prompt: Tensor, token_mask: Tensor | None) -> Tensor:
        """[b, T, C], the tokens as they came in [b, T, C], [b, T] -> [b, T, C] after the self-attention."""
        if self.variant == "efficient_sam":
            tokens = tokens if self.first else tokens + prompt
            tokens = tokens + self.self_attn(tokens, tokens, tokens, token_mask)
        elif self.first:
            tokens = self.self_attn(tokens, tokens, tokens, token_mask)
        else:
            placed = tokens + prompt
            tokens = tokens + self.self_attn(placed, placed, tokens, token_mask)
        return self.norm1(tokens)

    def finish_tokens(self, tokens: Tensor, update: Tensor) -> Tensor:
        """[b, T, C], what the image gave [b, T, C] -> [b, T, C] after the MLP."""
        tokens = self.norm2(tokens + update)
        return self.norm3(tokens + self.mlp(tokens))


class TokenMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1, self.act, self.lin2 = nn.Linear(width, hidden), activation, nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.lin2(self.act(self.lin1(tokens)))


class PreparedImage:
    """What decoding needs of images, whatever the prompts; projections are computed when first asked for, and kept.

    Args:
        tokens: [B, N, C] of the images.
        positions: [N, C] their positions.
        grid_size: (gh, gw), N = gh*gw.
        no_mask_embed: [C] what is added to the image where there is no mask prompt, or None.
    """

    def __init__(
        self, tokens: Tensor, positions: Tensor, *, grid_size: tuple[int, int], no_mask_embed: Tensor | None
    ) -> None:
        self.tokens, self.positions, self.grid_size = tokens, positions, grid_size
        self.start = tokens if no_mask_embed is None else tokens + no_mask_embed.to(tokens.dtype)  # [B, N, C]
        self.first_layer: tuple[Tensor, Tensor, Tensor] | None = None

    def project(self, layer: TwoWayLayer) -> tuple[Tensor, Tensor, Tensor]:
        """What the first layer makes of images without mask prompts: keys and values [B, h, N, d], queries
        [B, h, d, N]."""
        if self.first_layer is None:
            placed = self.start + self.positions
            keys, values = layer.cross_attn_token_to_image.project_image(self.start, placed)
            self.first_layer = keys, values, layer.cross_attn_image_to_token.project_image(placed)
        return self.first_layer

    def take(self, rows: list[int]) -> "PreparedImage":
        """Some of the images."""
        image = PreparedImage(self.tokens[rows], self.positions, grid_size=self.grid_size, no_mask_embed=None)
        image.start = self.start[rows]
        if self.first_layer is not None:
            keys, values, queries = self.first_layer
            image.first_layer = keys[rows], values[rows], queries[rows]
        return image


class TwoWayTransformer(nn.Module):
    """Depth 2, width 256, 8 heads, as in all SAM models.

    Prompts without masks: `start` for all of them, then `finish` for some at a time. Prompts with masks: `attend`.
    """

    layers: Any  # a ModuleList of `TwoWayLayer`

    def __init__(
        self, *, depth: int = 2, width: int = 256, num_heads: int = 8, mlp_width: int = 2048, variant: str = "sam"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(width, num_heads, mlp_width, first=number == 0, variant=variant) for number in range(depth)
        )
        self.final_attn_token_to_image = TokenToImage(width, num_heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def start(self, prompt: Tensor, token_mask: Tensor | None, image: PreparedImage) -> Tensor:
        """[B, Q, T, C], [B, Q, T] -> [B, Q, T, C]: the tokens before the image first looks at them."""
        flat = prompt.flatten(0, 1)
        layer: TwoWayLayer = self.layers[0]
        tokens = layer.attend_tokens(flat, flat, None if token_mask is None else token_mask.flatten(0, 1))
        keys, values, _ = image.project(layer)
        update = layer.cross_attn_token_to_image.forward_shared(tokens.view_as(prompt) + prompt, keys, values)
        return layer.finish_tokens(tokens, update.flatten(0, 1)).view_as(prompt)

    def finish(
        self, tokens: Tensor, prompt: Tensor, token_mask: Tensor | None, image: PreparedImage, images: slice
    ) -> tuple[Tensor, Tensor]:
        """What `start` gave for some prompts of some images -> their tokens [b, T, C] and image tokens [b, N, C]."""
        layer: TwoWayLayer = self.layers[0]
        queries = image.project(layer)[2][images]
        image_tokens = layer.cross_attn_image_to_token.forward_shared(
            image.start[images], queries, tokens + prompt, tokens, token_mask
        )
        tokens, prompt = tokens.flatten(0, 1), prompt.flatten(0, 1)
        token_mask = None if token_mask is None else token_mask.flatten(0, 1)
        return self.attend(tokens, layer.norm4(image_tokens), prompt, token_mask, image.positions, self.layers[1:])

    def attend(
        self,
        tokens: Tensor,
        image: Tensor,
        prompt: Tensor,
        token_mask: Tensor | None,
        positions: Tensor,
        layers: Sequence[TwoWayLayer],
    ) -> tuple[Tensor, Tensor]:
        """[b, T, C], [b, N, C], [b, T, C], [b, T] -> tokens [b, T, C], image tokens [b, N, C] after `layers`."""
        placed = image + positions
        for layer in layers:
            tokens = layer.attend_tokens(tokens, prompt, token_mask)
            update = layer.cross_attn_token_to_image(tokens + prompt, image, placed)
            tokens = layer.finish_tokens(tokens, update)
            image = layer.cross_attn_image_to_token(image, placed, tokens + prompt, tokens, token_mask)
            image = layer.norm4(image)
            placed = image + positions
        update = self.final_attn_token_to_image(tokens + prompt, image, placed)
        return self.norm_final_attn(tokens + update), image
