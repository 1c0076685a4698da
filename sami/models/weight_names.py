"""Parameter names of released files (SAM, MobileSAM, RepViT-SAM, EfficientSAM, MAE, timm) -> ours, by pure functions.

Ours are SAM's own names for prompt encoder and mask decoder, and timm's for image encoders.
"""

import math
import re
from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor


def to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whichever of the maps below the names call for; names that none of them knows stay as they are."""
    if any(name.startswith("image_encoder.blocks.") and ".mlp.lin1." in name for name in state_dict):
        encoder = {f"image_encoder.{name}": value for name, value in sam_image_encoder_to_timm(state_dict).items()}
        return encoder | {name: value for name, value in state_dict.items() if not name.startswith("image_encoder.")}
    if any(name.startswith("image_encoder.patch_embed.seq.") for name in state_dict):
        return mobile_sam_to_ours(state_dict)
    if any(name.startswith("image_encoder.features.") for name in state_dict):
        return repvit_sam_to_ours(state_dict)
    if "prompt_encoder.invalid_points.weight" in state_dict:
        return {efficient_name(name): value for name, value in state_dict.items()}
    return dict(state_dict)


def sam_image_encoder_to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Segment Anything's names (`sam_vit_h_4b8939.pth`) -> those of timm's samvit, without the rest of SAM."""
    prefix = "image_encoder."
    names = {name: name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
    return {new.replace(".mlp.lin", ".mlp.fc"): state_dict[name] for name, new in names.items()}


def mobile_sam_to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM (`mobile_sam.pt`): TinyViT as timm has it, without its classifier and the norm before that."""
    dropped = ("image_encoder.head.", "image_encoder.norm_head.")
    return {mobile_name(name): value for name, value in state_dict.items() if not name.startswith(dropped)}


def mobile_name(name: str) -> str:
    """In timm a stage begins with its downsampling; in TinyViT's own code the stage before ends with it."""
    if not name.startswith("image_encoder."):
        return name
    name = name.replace(".c.", ".conv.").replace("patch_embed.seq.0.", "patch_embed.conv1.")
    name = name.replace("patch_embed.seq.2.", "patch_embed.conv2.")
    name = re.sub(r"layers\.(\d)\.downsample", lambda found: f"stages.{int(found[1]) + 1}.downsample", name)
    return name.replace("image_encoder.layers.", "image_encoder.stages.")


REPVIT_BLOCK = (  # within a block, and within one that halves the grid: beginning of a name, what it becomes
    {"token_mixer.0.": "token_mixer.", "token_mixer.1.": "se.", "channel_mixer.m.": "channel_mixer."},
    {"token_mixer.0.": "spatial_downsample.", "token_mixer.2.": "channel_downsample.", "channel_mixer.m.": "ffn."},
)


def repvit_sam_to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RepViT-SAM (`repvit_sam.pt`), which numbers its blocks through; in timm they belong to stages.

    A stage begins with a block that halves the grid, and timm counts the block before that one to it.
    """
    prefix = "image_encoder.features."
    numbers = sorted({int(name.split(".")[2]) for name in state_dict if name.startswith(prefix)})
    halving = {number for number in numbers if f"{prefix}{number}.token_mixer.2.c.weight" in state_dict}
    prefixes, stage, block = {0: "stem."}, 0, 0
    for number in numbers[1:]:
        if number in halving:
            prefixes[number] = f"stages.{stage}.downsample."
        elif number + 1 in halving:
            stage, block = stage + 1, 0
            prefixes[number] = f"stages.{stage}.downsample.pre_block."
        else:
            prefixes[number] = f"stages.{stage}.blocks.{block}."
            block += 1

    def rename(name: str) -> str:
        if not name.startswith(prefix):
            return name
        number, _, rest = name.removeprefix(prefix).partition(".")
        for begin, new in REPVIT_BLOCK[int(number) in halving].items():
            if rest.startswith(begin):
                rest = new + rest.removeprefix(begin)
                break
        # two convolutions, and an activation between them
        rest = re.sub(r"^(|channel_mixer\.|ffn\.)0\.", r"\1conv1.", rest)
        rest = re.sub(r"^(|channel_mixer\.|ffn\.)2\.", r"\1conv2.", rest)
        return f"image_encoder.{prefixes[int(number)]}{rest}"

    return {rename(name): value for name, value in state_dict.items()}


EFFICIENT_SAM = (  # pattern of a name, what it becomes; the first that matches
    (r"prompt_encoder\.invalid_points\.", "prompt_encoder.not_a_point_embed."),
    (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embeddings.1."),
    (r"prompt_encoder\.bbox_top_left_embeddings\.", "prompt_encoder.point_embeddings.2."),
    (r"prompt_encoder\.bbox_bottom_right_embeddings\.", "prompt_encoder.point_embeddings.3."),
    (r"(mask_decoder\.transformer\.layers\.\d)\.mlp\.layers\.0\.0\.", r"\1.mlp.lin1."),
    (r"(mask_decoder\.transformer\.layers\.\d)\.mlp\.fc\.", r"\1.mlp.lin2."),
    (r"mask_decoder\.final_output_upscaling_layers\.0\.(\d)\.", r"mask_decoder.output_upscaling.\1."),
    (r"mask_decoder\.final_output_upscaling_layers\.1\.0\.", "mask_decoder.output_upscaling.3."),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.\d)\.0\.", r"\1."),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.fc\.", r"\1.layers.2."),
)


def efficient_name(name: str) -> str:
    """EfficientSAM (`efficient_sam_vitt.pt`): image encoder as it is, the parts of the decoder have other names."""
    for pattern, new in EFFICIENT_SAM:
        if re.match(pattern, name):
            return re.sub(pattern, new, name, count=1)
    return name


def backbone_only(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """A timm model -> its entries for these names of an image encoder made of it, as far as there are any.

    timm's networks without classifier have "stages_0" for "stages.0", or the model's names behind "model.".
    """

    def plain(name: str) -> str:
        return name.removeprefix("backbone.").removeprefix("model.").replace(".", "_")

    found = {plain(name): value for name, value in state_dict.items()}
    return {name: found[plain(name)] for name in names if plain(name) in found}


def vit_to_efficient_sam(state_dict: Mapping[str, Tensor], grid_size: tuple[int, int]) -> dict[str, Tensor]:
    """A plain ViT of SAMI, MAE or timm -> `EfficientSAMEncoder` without neck.

    Class token, final norm, classifier and MAE's decoder are left out; EfficientSAM has none of them. The position
    table is resized (bicubic) to `grid_size` where it has another one; ValueError where its own is no square.
    """
    dropped = ("cls_token", "mask_token", "norm.", "fc_norm.", "head.", "decoder")
    kept = {name: value for name, value in state_dict.items() if not name.startswith(dropped)}
    table = kept.get("pos_embed")
    if table is None or table.ndim != 3:
        return kept  # the strict load names it
    class_rows = 1 if "cls_token" in state_dict else 0
    cells = math.isqrt(table.shape[1] - class_rows)
    if cells * cells != table.shape[1] - class_rows:
        raise ValueError(f"a position table of {table.shape[1]} rows belongs to no square grid of patches")
    positions = table[:, class_rows:].float()  # [1, cells*cells, D]
    if (cells, cells) != tuple(grid_size):
        square = positions.transpose(1, 2).unflatten(2, (cells, cells))
        positions = F.interpolate(square, tuple(grid_size), mode="bicubic").flatten(2).transpose(1, 2)
    # the row of the class token stays in the table, as in EfficientSAM's files
    kept["pos_embed"] = F.pad(positions, (0, 0, 1, 0))
    return kept
