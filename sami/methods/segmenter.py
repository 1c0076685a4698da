"""What fine-tuning starts from, and what it leaves behind."""

from pathlib import Path

import pytorch_lightning as pl

from sami.models.build import TIMM, build_sam, load_backbone, load_decoder, save_sam
from sami.models.prompt_encoder import PATCH_SIZE
from sami.models.sam import Sam


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


class SegmenterExport(pl.Callback):
    """Writes the segmenter with every checkpoint; `build_sam(checkpoint=path)` loads it.

    Args:
        path: of the .safetensors file.
        recipe: strings to keep in the file's header.
    """

    def __init__(self, path: str, *, recipe: dict[str, str]) -> None:
        self.path, self.recipe = Path(path), recipe

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if trainer.is_global_zero:
            save_sam(pl_module.model, self.path, metadata={**self.recipe, "step": str(trainer.global_step)})
