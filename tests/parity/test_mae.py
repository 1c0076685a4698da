"""MAE of this project against facebookresearch/mae, on stand-in weights that any machine can make from their names."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.seeded import seeded_array, seeded_image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from sami.losses import feature_loss
from sami.models.pixel_teachers import PixelTeacher
from sami.models.sami import SAMI, SelfAttentionDecoder
from sami.models.vit import ViT
from sami.models.weights import load_state_dict_file, load_strictly
from sami.ops.masking import split_by_noise
from sami.ops.pos_embed import sincos_pos_embed

GOLDEN = Path(__file__).parent / "golden"
close = partial(torch.testing.assert_close, rtol=0, atol=1e-4)


def our_name(name: str) -> str:
    """A name in MAE's released pretraining files -> that in `SAMI(ViT, SelfAttentionDecoder)`."""
    if name.startswith("decoder_pred."):
        return name.replace("decoder_pred.", "head.", 1)
    if name.startswith("decoder_"):
        return name.replace("decoder_", "decoder.", 1)
    return f"decoder.{name}" if name == "mask_token" else f"encoder.{name}"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "mae_vitt.npz"))


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    images = np.stack([seeded_image(f"golden-crop-{i}", 224, 224) for i in range(4)]) / 255
    images = (images - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    return torch.from_numpy(images).float().permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> SAMI:
    shapes = json.loads((GOLDEN / "mae_vitt.keys.json").read_text())
    weights = {name: torch.from_numpy(seeded_array(name, tuple(shape))) for name, shape in shapes.items()}
    weights["pos_embed"] = sincos_pos_embed((14, 14), 192, num_prefix_tokens=1)
    weights["decoder_pos_embed"] = sincos_pos_embed((14, 14), 512, num_prefix_tokens=1)
    path = tmp_path_factory.mktemp("mae") / "checkpoint-799.pth"
    torch.save({"model": weights, "epoch": 799}, path)
    network = SAMI(ViT("tiny"), SelfAttentionDecoder, target_width=768)
    renamed = {our_name(name): value for name, value in load_state_dict_file(path).items()}
    load_strictly(network, renamed, source=str(path))
    return network.eval()


def test_position_tables(network, golden):
    close(network.encoder.pos_embed[:, ::4, ::4], torch.from_numpy(golden["pos_embed"]))
    close(network.decoder.pos_embed[:, ::4, ::8], torch.from_numpy(golden["decoder_pos_embed"]))


def test_mask(golden):
    split = split_by_noise(torch.from_numpy(golden["noise"]), 0.75)
    assert (split.ids_restore.numpy() == golden["ids_restore"]).all()
    removed = np.zeros_like(golden["mask"])
    np.put_along_axis(removed, split.ids_mask.numpy(), 1, axis=1)
    assert (removed == golden["mask"]).all()


@torch.no_grad()
def test_latent_prediction_and_loss(network, image, golden):
    split = split_by_noise(torch.from_numpy(golden["noise"]), 0.75)
    latent = network.encoder.encode_visible(image, split.ids_keep)
    close(latent[:, :, ::4], torch.from_numpy(golden["latent"]))
    prediction = network(image, split)
    close(prediction[:, ::4, ::8], torch.from_numpy(golden["pred"]))
    loss = feature_loss(prediction, PixelTeacher()({"image": image}), split, distance="mse", tokens="masked")
    assert loss.item() == pytest.approx(float(golden["loss"]), abs=1e-4)
