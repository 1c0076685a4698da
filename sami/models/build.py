"""Build SAM, MobileSAM, RepViT-SAM, EfficientSAM or a segmenter with a timm backbone by name, load and save them.

build_sam("efficient_sam_vits", checkpoint="efficient_sam_vits.pt")
"""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sami.models.image_encoders.efficient_sam import PRETRAINED_GRID, EfficientSAMEncoder
from sami.models.image_encoders.mobile import RepViTEncoder, StagedEncoder, TinyViTEncoder, fuse_branches
from sami.models.image_encoders.sam import build_sam_vit
from sami.models.image_encoders.timm import TimmEncoder
from sami.models.prompt_encoder import PATCH_SIZE
from sami.models.sam import Sam
from sami.models.timm_models import download_timm
from sami.models.weight_names import backbone_only, to_ours, vit_to_efficient_sam
from sami.models.weights import load_state_dict_file, load_strictly, save_weights

MODELS = {  # name: resize_mode, decoder as released; besides, timm/NAME has any timm backbone
    "sam_vit_b": ("pad", "sam"),
    "sam_vit_l": ("pad", "sam"),
    "sam_vit_h": ("pad", "sam"),
    "mobile_sam": ("pad", "sam"),
    "repvit_sam": ("pad", "sam"),
    "repvit_sam_m1_1": ("pad", "sam"),  # never released; a smaller RepViT
    "efficient_sam_vitt": ("stretch", "efficient_sam"),
    "efficient_sam_vits": ("stretch", "efficient_sam"),
    "efficient_sam_vitb": ("stretch", "efficient_sam"),  # never released; the paper's Table 2 has the encoder
}
TIMM = "timm/"  # begins the names of segmenters with a timm backbone
EFFICIENT_SIZES = {"t": "tiny", "s": "small", "b": "base"}
OPTIONS = ("name", "image_size", "resize_mode", "decoder")  # what a file of `save_sam` says of its model


def build_sam(
    name: str | None = None,
    checkpoint: str | Path | None = None,
    *,
    image_size: int | None = None,
    resize_mode: str | None = None,
    decoder: str | None = None,
    drop_path: float = 0.0,
    fused: bool = False,
) -> Sam:
    """A segmenter in eval mode, on the CPU.

    Args:
        name: one of `MODELS`, or "timm/resnet18" for any timm backbone, see `TimmEncoder`. A file of `save_sam` knows
            its own.
        checkpoint: a released file under its original names, or one of `save_sam`. None: random weights.
        image_size, resize_mode, decoder: see `Sam`. None: as the file says, or as the model was released (1024).
        drop_path: in training, chance to leave out the image encoder's last block; RepViT has none.
        fused: faster convolutions for prediction alone, see `fuse_branches`.

    Raises:
        ValueError: unknown or contradicting choices, or the file is missing, damaged, of another model, or would run
            code; a missing or unknown parameter is named.
    """
    asked = {"name": name, "image_size": image_size, "resize_mode": resize_mode, "decoder": decoder}
    described = {} if checkpoint is None else read_description(checkpoint)
    if name is None and checkpoint is not None and "name" not in described:
        load_state_dict_file(checkpoint)  # a missing or damaged file is told as such
        raise ValueError(f"{checkpoint} does not say which model it is: give its name")
    if "sam_drawn_prompts" in (decoder, described.get("decoder")):
        raise ValueError(
            "decoder=sam_drawn_prompts no longer exists, and its weights give other masks without the drawings: train "
            "again with decoder=sam, or use a version of sami that has it"
        )
    for option, value in asked.items():
        if None not in (value, described.get(option)) and value != described[option]:
            raise ValueError(f"{checkpoint} was saved with {option}={described[option]}, not {value}")
    options = {**described, **{option: value for option, value in asked.items() if value is not None}}
    name = str(options.get("name"))
    if name not in MODELS and not name.startswith(TIMM):
        given = f"name={name!r}" if "name" in options else "no name given"
        raise ValueError(f"{given}: choose one of {', '.join(MODELS)}, or {TIMM} and a name of timm's")
    released = (1024, *MODELS.get(name, ("pad", "sam")))
    options = {**dict(zip(OPTIONS[1:], released, strict=True)), **options}
    if name.startswith("sam_") and options["image_size"] != 1024:
        raise ValueError(f"image_size={options['image_size']}: {name} has tables for 1024 pixels, and takes no other")
    # SAM's encoders are up to 2.5 GB: never allocated besides the file's own pages
    with torch.device("meta") if checkpoint and name.startswith("sam_") else nullcontext():
        encoder = build_image_encoder(name, image_size=options["image_size"], drop_path=drop_path)
        sam = Sam(encoder, **options)
    if checkpoint is not None:
        load_strictly(sam, to_ours(load_state_dict_file(checkpoint)), source=str(checkpoint))
    if fused:
        fuse_branches(sam.eval().image_encoder)
    return sam.eval()


sam_model_registry: dict[str, Callable[..., Sam]] = {  # by the names of segment-anything, and of MobileSAM
    "default": partial(build_sam, "sam_vit_h"),
    "vit_h": partial(build_sam, "sam_vit_h"),
    "vit_l": partial(build_sam, "sam_vit_l"),
    "vit_b": partial(build_sam, "sam_vit_b"),
    "vit_t": partial(build_sam, "mobile_sam"),
}


def build_image_encoder(name: str, *, image_size: int = 1024, drop_path: float = 0.0) -> nn.Module:
    """[B, 3, H, W] -> [B, 256, H/16, W/16]; arguments as of `build_sam`."""
    if name.startswith("sam_"):
        return build_sam_vit(name, drop_path=drop_path)
    if name.startswith(TIMM):
        return TimmEncoder(name.removeprefix(TIMM), image_size=image_size, drop_path=drop_path)
    if name == "mobile_sam":
        return TinyViTEncoder(drop_path=drop_path)
    if name.startswith("repvit_sam"):
        return RepViTEncoder(f"repvit{name.removeprefix('repvit_sam') or '_m2_3'}")
    return EfficientSAMEncoder(EFFICIENT_SIZES[name[-1]], drop_path=drop_path)


PRETRAINED = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "base": "vit_base_patch16_224"}


def load_backbone(encoder: nn.Module, source: str | Path) -> None:
    """A pretrained backbone into the image encoder; the neck stays as it is.

    Args:
        encoder: of any segmenter but SAM itself.
        source: a file with timm's names: for `EfficientSAMEncoder` a plain ViT of SAMI, MAE or timm, for the others
            timm's model of that name. What the encoder has no place for, such as a classifier, is left out. "hub":
            timm's download, pretrained on ImageNet.

    Raises:
        ValueError: the file is missing, damaged or of another network, or the encoder is SAM's own.
        ConnectionError: the download failed.
    """
    if isinstance(encoder, EfficientSAMEncoder):
        name = PRETRAINED[encoder.size]
    elif isinstance(encoder, StagedEncoder | TimmEncoder):
        name = encoder.name
    else:
        raise ValueError("a backbone of its own is for the other encoders: SAM's come whole, as checkpoint")
    if source == "hub":
        state_dict = download_timm(name, option="backbone").state_dict()
    else:
        state_dict = load_state_dict_file(source)
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("neck.")}
    if isinstance(encoder, EfficientSAMEncoder):
        state_dict = vit_to_efficient_sam(state_dict, PRETRAINED_GRID)
    else:
        state_dict = backbone_only(state_dict, own)
    neck = {f"neck.{name}": value for name, value in encoder.neck.state_dict().items()}
    load_strictly(encoder, {**state_dict, **neck}, source=str(source))


def load_decoder(sam: Sam, checkpoint: str | Path) -> None:
    """Prompt encoder and mask decoder of any segmenter's file into `sam`, whatever image encoder they came with.

    Raises:
        ValueError: the file is missing or damaged, or its decoder is of the other kind.
    """
    parts = nn.ModuleDict({"prompt_encoder": sam.prompt_encoder, "mask_decoder": sam.mask_decoder})
    weights = to_ours(load_state_dict_file(checkpoint))
    kept = {name: value for name, value in weights.items() if name.split(".")[0] in parts}
    load_strictly(parts, kept, source=str(checkpoint))


def save_sam(sam: Sam, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Save all weights, and what `build_sam` needs to know besides `metadata`, in one .safetensors file."""
    if getattr(sam.image_encoder, "fused", False):
        raise ValueError("a fused model cannot be saved: save it before, and build it with fused=True")
    save_weights(sam.state_dict(), path, metadata={**(metadata or {}), "sam": description(sam)})


def description(sam: Sam) -> str:
    """What `build_sam` needs to know of a model, for the header of its file, under "sam"."""
    return json.dumps({option: getattr(sam, option) for option in OPTIONS})


def read_description(path: str | Path) -> dict[str, Any]:
    """What `save_sam` wrote about the model; nothing for any other file."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {}).get("sam", "{}"))
    except (SafetensorError, ValueError):
        return {}  # reading the tensors says what is wrong with the file
    if isinstance(described, dict) and "preprocess" in described:  # as `resize_mode` was called, and "stretch" squash
        described["resize_mode"] = str(described.pop("preprocess")).replace("squash", "stretch")
    kinds = {"name": str, "image_size": int, "resize_mode": str, "decoder": str}
    sound = isinstance(described, dict) and all(isinstance(described.get(key), kind) for key, kind in kinds.items())
    if described and not sound:
        raise ValueError(f"{path}: what its header says of the model is not what save_sam writes ({described})")
    return {option: described[option] for option in OPTIONS} if described else {}  # older files say more


def start_segmenter(
    *,
    name: str,
    checkpoint: str | None,
    backbone: str | None,
    decoder_checkpoint: str | None,
    image_size: int,
    resize_mode: str,
    decoder: str,
    drop_path: float,
) -> Sam:
    """The segmenter to train: a whole one from a file, or its parts, and what comes from no file at random.

    Args:
        name, resize_mode, decoder, drop_path: see `build_sam`.
        image_size: pixels per side of what the model sees; may differ from that of the file.
        checkpoint: of a whole segmenter.
        backbone: for the image encoder, see `load_backbone`.
        decoder_checkpoint: for prompt encoder and mask decoder, see `load_decoder`.

    Raises:
        ValueError: see these; a whole segmenter and parts of one; or a size that the encoder does not take.
    """
    if checkpoint and (backbone or decoder_checkpoint):
        raise ValueError("checkpoint is a whole segmenter: give it, or backbone and decoder_checkpoint")
    built_for = image_size if name.startswith(TIMM) and not checkpoint else None  # some of timm's have one size only
    how = {"resize_mode": resize_mode, "decoder": decoder, "drop_path": drop_path}
    model = build_sam(name, checkpoint, image_size=built_for, **how)
    if image_size % PATCH_SIZE or (image_size != model.image_size and name.startswith("sam_")):
        raise ValueError(f"image_size={image_size}: give a multiple of {PATCH_SIZE}, and 1024 for sam_vit_b, l and h")
    model.image_size = image_size  # the other encoders take any, so that a run may go on at another
    if backbone:
        load_backbone(model.image_encoder, backbone)
    if decoder_checkpoint:
        load_decoder(model, decoder_checkpoint)
    return model
