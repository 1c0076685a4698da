"""Names of released files become ours; the whole files are compared in `tests/parity`."""

import torch

from sami.models.weight_names import sam_image_encoder_to_timm


def test_sam_names():
    given = ["image_encoder.blocks.0.mlp.lin1.weight", "image_encoder.pos_embed", "mask_decoder.mlp.lin1.weight"]
    renamed = sam_image_encoder_to_timm({name: torch.tensor(i) for i, name in enumerate(given)})
    assert renamed == {"blocks.0.mlp.fc1.weight": torch.tensor(0), "pos_embed": torch.tensor(1)}
