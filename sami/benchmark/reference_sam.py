"""The released designs, as measures of speed and as references for values and gradients.

They compute what `Sam` computes, with its weights, in the order in which SAM's and EfficientSAM's released code does:
the image embedding is repeated for every prompt and projected for each of them, masks go through convolutions, and
attention is three separate steps.

B images   Q prompts per image   T tokens of a prompt   K masks   N tokens   C width   gh gw token grid
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sami.models.image_encoders.efficient_sam import EfficientSAMEncoder
from sami.models.sam import Sam
from sami.models.two_way_attention import Attention
from sami.models.two_way_transformer import TwoWayLayer


def decode_tiled(
    sam: Sam,
    image_embeddings: Tensor,
    point_coords: Tensor,
    point_labels: Tensor,
    mask_input: Tensor | None = None,
    *,
    multimask_output: bool,
) -> tuple[Tensor, Tensor]:
    """`Sam.decode` as released: every prompt has a copy of the image. Prompts must need no padding."""
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    (B, C, gh, gw), Q = image_embeddings.shape, point_labels.shape[1]
    sparse, _ = encoder.encode_points(point_coords, point_labels, (gh, gw))
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    prompt = torch.cat([output.expand(B * Q, -1, -1), sparse.flatten(0, 1)], dim=1)  # [B*Q, T, C]
    image = image_embeddings.repeat_interleave(Q, 0)  # [B*Q, C, gh, gw]
    if mask_input is not None:
        image = image + encoder.mask_downscaling(mask_input.flatten(0, 1).unsqueeze(1))
    elif encoder.takes_masks:
        image = image + encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(B * Q, -1, gh, gw)
    positions = encoder.grid_positions((gh, gw)).expand(B * Q, -1, -1)

    keys, tokens, transformer = image.flatten(2).transpose(1, 2), prompt, decoder.transformer
    for layer in transformer.layers:
        assert isinstance(layer, TwoWayLayer)
        tokens = layer.attend_tokens(tokens, prompt, None)
        update = attend_plain(layer.cross_attn_token_to_image, tokens + prompt, keys + positions, keys)
        tokens = layer.finish_tokens(tokens, update)
        update = attend_plain(layer.cross_attn_image_to_token, keys + positions, tokens + prompt, tokens)
        keys = layer.norm4(keys + update)
    update = attend_plain(transformer.final_attn_token_to_image, tokens + prompt, keys + positions, keys)
    tokens = transformer.norm_final_attn(tokens + update)

    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(B * Q, C, gh, gw))
    hyper = torch.stack([net(tokens[:, 1 + i]) for i, net in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    masks = (hyper @ upscaled.flatten(2)).view(B, Q, -1, 4 * gh, 4 * gw)
    ious = decoder.iou_prediction_head(tokens[:, 0]).view(B, Q, -1)
    kept = slice(1, None) if multimask_output else slice(0, 1)
    return masks[:, :, kept], ious[:, :, kept]


def attend_plain(layer: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Project everything, then matmul, softmax, matmul: [b, L, C], [b, M, C] twice -> [b, L, C]."""
    q, k, v = layer.q_proj(queries), layer.k_proj(keys), layer.v_proj(values)
    q, k, v = (layer.heads(t).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax((q @ k.transpose(2, 3)) * layer.scale, dim=-1)
    return layer.out_proj((weights @ v).transpose(1, 2).flatten(2))


def plain_encoder(encoder: EfficientSAMEncoder) -> EfficientSAMEncoder:
    """The same encoder, weights shared, with attention as released."""
    twin = EfficientSAMEncoder.__new__(EfficientSAMEncoder)
    nn.Module.__init__(twin)
    twin.patch_embed, twin.pos_embed, twin.neck = encoder.patch_embed, encoder.pos_embed, encoder.neck
    twin.blocks = nn.Sequential(*(PlainBlock(block) for block in encoder.blocks))
    return twin.train(encoder.training)


class PlainBlock(nn.Module):
    """A block of `EfficientSAMEncoder` with attention in three steps and torch's own linear layers."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        block: Any = self.block
        tokens = tokens + plain_self_attention(block.attn, block.norm1(tokens))
        return tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))


def plain_self_attention(layer: Any, tokens: Tensor) -> Tensor:
    """[B, N, D] -> [B, N, D], all N x N weights in memory."""
    q, k, v = layer.qkv(tokens).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5).softmax(-1)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2))
