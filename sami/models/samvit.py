"""SAM's image encoder as timm builds it, with SAM's own numbers.

H W pixels   gh gw grid of 16-pixel patches
"""

from functools import partial

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from sami.models.checkpoints import (
    build_random,
    download,
    load_state_dict_file,
    load_strictly,
    sam_image_encoder_to_timm,
)

SAM_PATCH_SIZE = 16
SAM = {  # timm's name, Meta's file
    "sam_vit_b": ("samvit_base_patch16", "sam_vit_b_01ec64.pth"),
    "sam_vit_l": ("samvit_large_patch16", "sam_vit_l_0b3195.pth"),
    "sam_vit_h": ("samvit_huge_patch16", "sam_vit_h_4b8939.pth"),
}


def load_sam(name: str, weights: str) -> nn.Module:
    """timm's samvit, [B, 3, H, W] -> [B, 256, H/16, W/16]. `weights` as of `SamTeacher`.

    Raises:
        ValueError: unknown `name`, or the file is missing, damaged or of another model.
        RuntimeError: the download failed.
    """
    if name not in SAM:
        raise ValueError(f"teacher name={name!r}: choose one of {', '.join(SAM)}")
    architecture, file = SAM[name]
    # timm's LayerNorms have eps 1e-5, SAM's 1e-6: features differ by up to 7 % where tokens vary little.
    options = {"num_classes": 0, "global_pool": "", "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    if weights == "hub":
        return download(
            lambda: timm.create_model(f"{architecture}.sa1b", pretrained=True, **options),
            advice=f"download {file} from the page of facebookresearch/segment-anything",
        )
    if weights == "random":
        return build_random(lambda: timm.create_model(architecture, **options), announce=name)
    state_dict = load_state_dict_file(weights)
    if any(key.startswith("image_encoder.") for key in state_dict):
        state_dict = sam_image_encoder_to_timm(state_dict)
    with torch.device("meta"):  # ViT-H is 2.5 GB: never allocated besides the file's own pages
        network = timm.create_model(architecture, **options)
    load_strictly(network, state_dict, source=f"teacher.weights={weights}")
    return network


def fit_position_tables(network: nn.Module, grid: tuple[int, int]) -> dict[str, Tensor]:
    """samvit's position tables by parameter name, resized to (gh, gw) just as its forward would.

    The absolute table is resized bicubically (antialiased), the relative ones of global attention linearly. Those of
    windowed attention have the size of the window, whatever the image.
    """
    tables = {"pos_embed": resample_abs_pos_embed_nhwc(network.pos_embed, list(grid))}
    for i, block in enumerate(network.blocks):
        if block.window_size == 0:
            for axis, side in zip(("rel_pos_h", "rel_pos_w"), grid, strict=True):
                table = getattr(block.attn, axis).T.unsqueeze(0)  # [1, head width, 2 * 64 - 1]
                tables[f"blocks.{i}.attn.{axis}"] = F.interpolate(table, 2 * side - 1, mode="linear")[0].T
    return tables
