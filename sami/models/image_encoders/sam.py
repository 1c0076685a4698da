"""SAM's image encoder (ViT-B, L and H) as timm builds it, with SAM's own numbers.

B images   H W pixels   gh gw grid of 16-pixel patches
"""

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc  # pyright: ignore[reportPrivateImportUsage] # timm has no __all__
from torch import Tensor, nn

from sami.models.weight_names import sam_image_encoder_to_timm
from sami.models.weights import build_random, download, load_state_dict_file, load_strictly

SAM_PATCH_SIZE = 16
SAM = {  # timm's name, Meta's file
    "sam_vit_b": ("samvit_base_patch16", "sam_vit_b_01ec64.pth"),
    "sam_vit_l": ("samvit_large_patch16", "sam_vit_l_0b3195.pth"),
    "sam_vit_h": ("samvit_huge_patch16", "sam_vit_h_4b8939.pth"),
}


def build_sam_vit(name: str, *, drop_path: float = 0.0, pretrained: bool = False) -> nn.Module:
    """timm's samvit for one of `SAM`, [B, 3, H, W] -> [B, 256, gh, gw], with our attention in its blocks.

    Args:
        drop_path: chance to leave out the last block in training; earlier ones less, in proportion to their depth.
        pretrained: with SAM's weights, which timm downloads.
    """
    # timm's LayerNorms have eps 1e-5, SAM's 1e-6: features differ by up to 7 % where tokens vary little
    options: dict[str, Any] = {"num_classes": 0, "global_pool": "", "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    architecture = f"{SAM[name][0]}.sa1b" if pretrained else SAM[name][0]
    network: Any = timm.create_model(architecture, pretrained=pretrained, drop_path_rate=drop_path, **options)
    for block in network.blocks:
        block.attn.forward = partial(relative_position_attention, block.attn)
    return network


def load_sam(name: str, weights: str) -> nn.Module:
    """`build_sam_vit` with the weights of a file; arguments and errors as of `SamTeacher`."""
    if name not in SAM:
        raise ValueError(f"name={name!r}: choose one of {', '.join(SAM)}")
    if weights == "hub":
        advice = f"download {SAM[name][1]} from the page of facebookresearch/segment-anything"
        return download(lambda: build_sam_vit(name, pretrained=True), advice=advice, option="weights")
    if weights == "random":
        return build_random(lambda: build_sam_vit(name), announce=name)
    state_dict = load_state_dict_file(weights)
    if any(key.startswith("image_encoder.") for key in state_dict):
        state_dict = sam_image_encoder_to_timm(state_dict)
    with torch.device("meta"):  # ViT-H is 2.5 GB: never allocated besides the file's own pages
        network = build_sam_vit(name)
    load_strictly(network, state_dict, source=f"weights={weights}")
    return network


def relative_position_attention(layer: Any, x: Tensor) -> Tensor:
    """[B, gh, gw, C] -> [B, gh, gw, C]: SAM's attention without ever holding its N x N position term.

    The term is rel_h[query, row of key] + rel_w[query, column of key] (arXiv:2112.01526, Eq. 4), which is a scalar
    product: rel_h and rel_w are appended to each query, and a one-hot row and column to each key. So the fused kernels
    can take it; with the term as a mask, one image of 1024 pixels needs 0.5 GiB for it in bf16, and timm's
    three-dimensional queries keep CUDA from using them at all.
    """
    gh, gw = x.shape[1:3]
    qkv = layer.qkv(x.flatten(1, 2)).unflatten(-1, (3, layer.num_heads, -1))  # [B, N, 3, heads, d]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
    d = q.shape[-1]
    grid_q = q.unflatten(2, (gh, gw))
    rel_h = torch.einsum("bnhwd,hkd->bnhwk", grid_q, relative_table(layer.rel_pos_h, gh)).flatten(2, 3)
    rel_w = torch.einsum("bnhwd,wkd->bnhwk", grid_q, relative_table(layer.rel_pos_w, gw)).flatten(2, 3)
    rows = torch.eye(gh, dtype=k.dtype, device=k.device).repeat_interleave(gw, 0)  # [N, gh]
    columns = torch.eye(gw, dtype=k.dtype, device=k.device).repeat(gh, 1)  # [N, gw]
    cells = torch.cat([rows, columns], dim=1).expand(*k.shape[:2], -1, -1)  # [B, heads, N, gh + gw]
    scale = d**-0.5  # of q k only, so the other terms are divided by it first
    queries = torch.cat([q, (rel_h / scale).to(q.dtype), (rel_w / scale).to(q.dtype)], dim=-1)
    keys = torch.cat([k, cells], dim=-1)
    width = -(-queries.shape[-1] // 8) * 8  # fused kernels want equal widths, in multiples of 8
    queries, keys, values = (F.pad(t, (0, width - t.shape[-1])) for t in (queries, keys, v))
    attended = F.scaled_dot_product_attention(queries, keys, values, scale=scale)[..., :d]
    return layer.proj(attended.transpose(1, 2).flatten(2)).unflatten(1, (gh, gw))


def relative_table(table: Tensor, num_cells: int) -> Tensor:
    """[2 * num_cells - 1, d] -> [num_cells, num_cells, d]: at [query, key] the entry for their distance."""
    if len(table) != 2 * num_cells - 1:
        raise ValueError(f"a table of {len(table)} relative positions does not fit {num_cells} tokens in a row")
    position = torch.arange(num_cells, device=table.device)
    return table[position[:, None] - position[None, :] + num_cells - 1]


def fit_position_tables(network: Any, grid: tuple[int, int]) -> dict[str, Tensor]:
    """samvit's position tables by parameter name, resized to (gh, gw) just as its forward would.

    The absolute table is resized bicubically (antialiased), the relative ones of global attention linearly. Those of
    windowed attention have the size of the window, whatever the image.
    """
    tables = {"pos_embed": resample_abs_pos_embed_nhwc(network.pos_embed, list(grid))}
    for i, block in enumerate(network.blocks):
        if block.window_size == 0:
            for axis, num_cells in zip(("rel_pos_h", "rel_pos_w"), grid, strict=True):
                table = getattr(block.attn, axis).T.unsqueeze(0)  # [1, head width, 2 * 64 - 1]
                tables[f"blocks.{i}.attn.{axis}"] = F.interpolate(table, 2 * num_cells - 1, mode="linear")[0].T
    return tables
