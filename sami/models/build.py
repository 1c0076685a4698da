"""Every promptable segmenter by its name, with random weights, released ones, or one's own.

build_sam("efficient_sam_vits", checkpoint="efficient_sam_vits.pt")
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sami.models.checkpoints import load_state_dict_file, load_strictly
from sami.models.efficient_vit import PRETRAINED_GRID, EfficientViT
from sami.models.image_encoders import MobileViT, build_sam_vit
from sami.models.sam import Sam
from sami.models.sam_checkpoints import decoder_only, to_ours, vit_to_efficient_vit

MODELS = {  # name: preprocess, decoder as released
    "sam_vit_b": ("pad", "sam"),
    "sam_vit_l": ("pad", "sam"),
    "sam_vit_h": ("pad", "sam"),
    "mobile_sam": ("pad", "sam"),
    "efficient_sam_vitt": ("squash", "efficient_sam"),
    "efficient_sam_vits": ("squash", "efficient_sam"),
    "efficient_sam_vitb": ("squash", "efficient_sam"),  # never released; the paper's Table 2 has the encoder
}
EFFICIENT_SIZES = {"t": "tiny", "s": "small", "b": "base"}
OPTIONS = ("name", "image_size", "preprocess", "decoder")  # what a file of `save_sam` says of its model


def build_sam(
    name: str | None = None,
    checkpoint: str | Path | None = None,
    *,
    image_size: int | None = None,
    preprocess: str | None = None,
    decoder: str | None = None,
    drop_path: float = 0.0,
) -> Sam:
    """A segmenter in eval mode, on the CPU.

    Args:
        name: one of `MODELS`. A file of `save_sam` knows its own.
        checkpoint: a released file under its original names, or one of `save_sam`. None: random weights.
        image_size, preprocess, decoder: see `Sam`. None: as the file says, or as the model was released (1024).
        drop_path: in training, chance to leave out the image encoder's last block.

    Raises:
        ValueError: unknown or contradicting choices, or the file is missing, damaged, of another model, or would run
            code; a missing or unknown parameter is named.
    """
    asked = {"name": name, "image_size": image_size, "preprocess": preprocess, "decoder": decoder}
    described = {} if checkpoint is None else read_description(checkpoint)
    for option, value in asked.items():
        if None not in (value, described.get(option)) and value != described[option]:
            raise ValueError(f"{checkpoint} was saved with {option}={described[option]}, not {value}")
    options = {**described, **{option: value for option, value in asked.items() if value is not None}}
    if options.get("name") not in MODELS:
        given = f"name={options['name']!r}" if "name" in options else "no name given"
        raise ValueError(f"{given}: choose one of {', '.join(MODELS)}")
    defaults = dict(zip(OPTIONS[1:], (1024, *MODELS[options["name"]]), strict=True))
    options = {**defaults, **options}
    if checkpoint is None:
        return Sam(build_image_encoder(options["name"], drop_path=drop_path), **options).eval()
    state_dict = to_ours(load_state_dict_file(checkpoint))
    # SAM's encoders are up to 2.5 GB: never allocated besides the file's own pages
    with torch.device("meta" if options["name"].startswith("sam_") else "cpu"):
        sam = Sam(build_image_encoder(options["name"], drop_path=drop_path), **options)
    load_strictly(sam, state_dict, source=str(checkpoint))
    return sam.eval()


def build_image_encoder(name: str, *, drop_path: float = 0.0) -> nn.Module:
    """[B, 3, H, W] -> [B, 256, H/16, W/16]; `name` one of `MODELS`."""
    if name.startswith("sam_"):
        return build_sam_vit(name, drop_path=drop_path)
    if name == "mobile_sam":
        return MobileViT(drop_path=drop_path)
    return EfficientViT(EFFICIENT_SIZES[name[-1]], drop_path=drop_path)


def load_backbone(encoder: EfficientViT, checkpoint: str | Path) -> None:
    """A plain ViT pretrained by SAMI, MAE or timm into the image encoder; the neck stays as it is.

    Raises:
        ValueError: the file is missing, damaged or of another network; the message names what does not fit.
    """
    state_dict = vit_to_efficient_vit(load_state_dict_file(checkpoint), PRETRAINED_GRID)
    neck = {f"neck.{name}": value for name, value in encoder.neck.state_dict().items()}
    load_strictly(encoder, {**state_dict, **neck}, source=str(checkpoint))


def load_decoder(sam: Sam, checkpoint: str | Path) -> None:
    """Prompt encoder and mask decoder of any segmenter's file into `sam`, whatever image encoder they came with.

    Raises:
        ValueError: the file is missing or damaged, or its decoder is of the other kind.
    """
    part = nn.ModuleDict({"prompt_encoder": sam.prompt_encoder, "mask_decoder": sam.mask_decoder})
    load_strictly(part, decoder_only(to_ours(load_state_dict_file(checkpoint))), source=str(checkpoint))


def save_sam(sam: Sam, path: str | Path) -> None:
    """All weights, and what `build_sam` needs to know, in one .safetensors file."""
    description = {option: getattr(sam, option) for option in OPTIONS}
    tensors = {name: value.detach().cpu().contiguous() for name, value in sam.state_dict().items()}
    save_file(tensors, path, metadata={"sam": json.dumps(description)})


def read_description(path: str | Path) -> dict[str, object]:
    """What `save_sam` wrote about the model; nothing for any other file."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("sam", "{}"))
    except (SafetensorError, ValueError):
        return {}  # reading the tensors says what is wrong with the file
