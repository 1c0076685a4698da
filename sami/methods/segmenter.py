"""What fine-tuning starts from, and what it leaves behind."""

import hashlib
import json
from pathlib import Path

import pytorch_lightning as pl
from safetensors.torch import save

from sami.files import whole_file
from sami.models.build import OPTIONS, TIMM, build_sam, load_backbone, load_decoder
from sami.models.prompt_encoder import PATCH_SIZE
from sami.models.sam import Sam


def start_segmenter(
    *,
    name: str,
    checkpoint: str | None,
    backbone: str | None,
    decoder_checkpoint: str | None,
    image_size: int,
    preprocess: str,
    decoder: str,
    drop_path: float,
) -> Sam:
    """The segmenter to train: a whole one from a file, or its parts, and what comes from no file at random.

    Args:
        name, preprocess, decoder, drop_path: see `build_sam`.
        image_size: pixels per side of what the model sees; may differ from that of the file.
        checkpoint: of a whole segmenter.
        backbone: for the image encoder, see `load_backbone`: a plain ViT of SAMI (`backbone.safetensors` of a run),
            MAE or timm, whose position table is resized; or timm's model for the other encoders.
        decoder_checkpoint: any segmenter's file, for prompt encoder and mask decoder; SAM's is the usual one.

    Raises:
        ValueError: see `build_sam`, `load_backbone` and `load_decoder`; a whole segmenter and parts of one; or
            a size that the encoder does not take.
    """
    if checkpoint and (backbone or decoder_checkpoint):
        raise ValueError("model.checkpoint is a whole segmenter: give it, or model.backbone and decoder_checkpoint")
    built_for = image_size if name.startswith(TIMM) and not checkpoint else None  # some of timm's have one size only
    how = {"preprocess": preprocess, "decoder": decoder, "drop_path": drop_path}
    model = build_sam(name, checkpoint, image_size=built_for, **how)
    if image_size % PATCH_SIZE or (image_size != model.image_size and name.startswith("sam_")):
        raise ValueError(f"image_size={image_size}: give a multiple of {PATCH_SIZE}, and 1024 for sam_vit_b, l and h")
    model.image_size = image_size  # the other encoders take any, so that a run may go on at another
    if backbone:
        load_backbone(model.image_encoder, backbone)
    if decoder_checkpoint:
        load_decoder(model, decoder_checkpoint)
    return model


def file_digest(path: str | None) -> str | None:
    """A fingerprint of a file's bytes: 16 hexadecimal digits, the same wherever it lies. "hub" stands for itself."""
    if path in (None, "hub"):
        return path
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class SegmenterExport(pl.Callback):
    """Writes the segmenter with every checkpoint; `build_sam(checkpoint=path)` loads it.

    Args:
        path: of the .safetensors file.
        recipe: strings to keep in the file's header.
    """

    def __init__(self, path: str, *, recipe: dict[str, str]) -> None:
        self.path, self.recipe = Path(path), recipe

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if not trainer.is_global_zero:
            return
        write_segmenter(pl_module.model, self.path, header={**self.recipe, "step": str(trainer.global_step)})


def write_segmenter(model: Sam, path: Path, *, header: dict[str, str]) -> None:
    """A file for `build_sam`, written whole, with strings to keep in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = json.dumps({option: getattr(model, option) for option in OPTIONS})
    with whole_file(path) as file:
        file.write(save(tensors, metadata={**header, "sam": about}))
