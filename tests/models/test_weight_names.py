"""Names of released files become ours; the whole files are compared in `tests/parity`."""

import torch

from sami.models.weight_names import mae_to_sami, sam_image_encoder_to_timm


def test_sam_names():
    given = ["image_encoder.blocks.0.mlp.lin1.weight", "image_encoder.pos_embed", "mask_decoder.mlp.lin1.weight"]
    renamed = sam_image_encoder_to_timm({name: torch.tensor(i) for i, name in enumerate(given)})
    assert renamed == {"blocks.0.mlp.fc1.weight": torch.tensor(0), "pos_embed": torch.tensor(1)}


def test_mae_names():
    names = {
        "pos_embed": "encoder.pos_embed",
        "blocks.3.norm1.weight": "encoder.blocks.3.norm1.weight",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.pos_embed",
        "decoder_embed.bias": "decoder.embed.bias",
        "decoder_blocks.7.attn.qkv.weight": "decoder.blocks.7.attn.qkv.weight",
        "decoder_norm.weight": "decoder.norm.weight",
        "decoder_pred.bias": "head.bias",
    }
    assert list(mae_to_sami({name: torch.zeros(1) for name in names})) == list(names.values())
