"""The attention layers of SAM's decoder (arXiv:2304.02643, App. A), arranged for many prompts on one image.

B images   Q prompts per image   b some of the B*Q prompts   T tokens of a prompt   N image tokens   C width
h heads   d width of a head (C/2 over all heads in attention between tokens and image)

A prompt has a dozen tokens, an image 4,096. So no projection is ever applied to the image tokens of a prompt: it is
moved to the few tokens instead, q (W x) = (q W) x, and half of the operations are left: none of them for positions,
which are added to the image. In the first layer no prompt has changed the image yet; there it is projected once for
all of them, positions included (`..._shared`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose inner width is `width / shrink`; alone, among the tokens of each prompt."""

    def __init__(self, width: int, num_heads: int, *, shrink: int = 1) -> None:
        super().__init__()
        inner = width // shrink
        self.num_heads, self.scale = num_heads, (inner // num_heads) ** -0.5
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            # the bound of one C x 3C matrix, as torch's own attention initialises the three
            bound = (6 / (width + 3 * inner)) ** 0.5
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor | None) -> Tensor:
        """[b, T, C] each, [b, T] bool or None for all -> [b, T, C]."""
        q, k, v = self.heads(self.q_proj(queries)), self.heads(self.k_proj(keys)), self.heads(self.v_proj(values))
        seen = None if token_mask is None else token_mask[:, None, None]
        attended = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=seen)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def heads(self, projected: Tensor) -> Tensor:
        """[..., h*d] -> [..., h, d]."""
        return projected.unflatten(-1, (self.num_heads, -1))


class TokenToImage(Attention):
    """Cross-attention of prompt tokens to the image."""

    def project_image(self, image: Tensor, placed: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, C], the same with positions -> keys and values [B, h, N, d] for `forward_shared`."""
        keys, values = self.heads(self.k_proj(placed)), self.heads(self.v_proj(image))
        return keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous()

    def forward_shared(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[B, Q, T, C], [B, h, N, d] twice -> [B, Q, T, C], for an image that no prompt has changed."""
        q = self.heads(self.q_proj(queries)).flatten(1, 2).transpose(1, 2)  # [B, h, Q*T, d]
        attended = F.scaled_dot_product_attention(q, keys, values)
        return self.out_proj(attended.transpose(1, 2).flatten(2)).view_as(queries)

    def forward(self, queries: Tensor, image: Tensor, placed: Tensor) -> Tensor:
        """[b, T, C], [b, N, C], the same with positions -> [b, T, C]."""
        q = self.heads(self.q_proj(queries)) * self.scale  # [b, T, h, d]
        weights = scores(q, self.k_proj, placed).softmax(-1)  # [b, h*T, N]
        seen = torch.bmm(weights, image).unflatten(1, (self.num_heads, -1))  # [b, h, T, C]
        attended = torch.einsum("bhtc,hdc->bthd", seen, split_heads(self.v_proj.weight, self.num_heads))
        return self.out_proj(attended.flatten(2) + self.v_proj.bias)  # the weights add up to 1


class ImageToToken(Attention):
    """Cross-attention of image tokens to the tokens of their prompt, with the residual connection."""

    def project_image(self, placed: Tensor) -> Tensor:
        """[B, N, C] with positions -> queries [B, h, d, N] for `forward_shared`."""
        return self.heads(self.q_proj(placed)).permute(0, 2, 3, 1).contiguous()

    def forward_shared(
        self, image: Tensor, queries: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor | None
    ) -> Tensor:
        """[B, N, C], [B, h, d, N], [B, Q, T, C] twice, [B, Q, T] -> [B*Q, N, C], each prompt's own image."""
        B, Q, T, _ = keys.shape
        k = self.heads(self.k_proj(keys)) * self.scale  # [B, Q, T, h, d]
        match = torch.matmul(k.permute(0, 3, 1, 2, 4).flatten(2, 3), queries)  # [B, h, Q*T, N]
        match = match.unflatten(2, (Q, T)).transpose(1, 2).flatten(0, 1)  # [B*Q, h, T, N]
        weights = self.weigh(match, None if token_mask is None else token_mask.flatten(0, 1))
        folded = self.fold_values(values.flatten(0, 1))
        if Q == 1 or B == 1:  # the broadcast image is read in place
            return torch.baddbmm(image, weights, folded)
        return (torch.bmm(weights, folded).unflatten(0, (B, Q)) + image.unsqueeze(1)).flatten(0, 1)

    def forward(self, image: Tensor, placed: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor | None) -> Tensor:
        """[b, N, C], the same with positions, [b, T, C] twice, [b, T] -> [b, N, C]."""
        k = self.heads(self.k_proj(keys)) * self.scale  # [b, T, h, d]
        match = scores(k, self.q_proj, placed).unflatten(1, (self.num_heads, -1))
        return torch.baddbmm(image, self.weigh(match, token_mask), self.fold_values(values))

    def weigh(self, match: Tensor, token_mask: Tensor | None) -> Tensor:
        """[b, h, T, N], [b, T] -> [b, N, h*T]: the share of each token for each image token."""
        if token_mask is not None:
            match = match.masked_fill(~token_mask[:, None, :, None], -torch.inf)
        return match.softmax(2).flatten(1, 2).transpose(1, 2)

    def fold_values(self, values: Tensor) -> Tensor:
        """[b, T, C] -> [b, h*T, C]: values with the output projection applied; its bias too, as shares add up to 1."""
        v = self.heads(self.v_proj(values))  # [b, T, h, d]
        folded = torch.einsum("bthd,chd->bhtc", v, self.heads(self.out_proj.weight))
        return (folded + self.out_proj.bias / self.num_heads).flatten(1, 2)


def scores(tokens: Tensor, linear: nn.Linear, placed: Tensor) -> Tensor:
    """[b, T, h, d], C -> h*d, [b, N, C] -> [b, h*T, N]: tokens times `linear(placed)`, head by head."""
    num_heads = tokens.shape[2]
    folded = torch.einsum("bthd,hdc->bhtc", tokens, split_heads(linear.weight, num_heads)).flatten(1, 2)
    offset = torch.einsum("bthd,hd->bht", tokens, split_heads(linear.bias, num_heads)).flatten(1, 2)
    return torch.baddbmm(offset.unsqueeze(-1), folded, placed.transpose(1, 2))


def split_heads(parameter: Tensor, num_heads: int) -> Tensor:
    """[h*d, ...] -> [h, d, ...]."""
    return parameter.unflatten(0, (num_heads, -1))
