"""TinyViT and RepViT at 16 pixels per cell."""

import pytest
import timm
import torch

from sami.models.build import load_backbone
from sami.models.image_encoders.mobile import RepViTEncoder, TinyViTEncoder


def test_mobile_encoder_with_recomputing():
    encoder = TinyViTEncoder().train()
    image = torch.randn(2, 3, 64, 64)
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        assert encoder(image).shape == (2, 256, 4, 4)
        encoder(image).square().mean().backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("build", [TinyViTEncoder, lambda: RepViTEncoder("repvit_m1_1")])
def test_own_encoders_start_from_timms_files(build, tmp_path) -> None:
    encoder = build()
    network = timm.create_model(encoder.name, num_classes=10)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    load_backbone(encoder, tmp_path / "net.pth")
    for name, value in network.stages.state_dict().items():
        assert torch.equal(encoder.stages.state_dict()[name], value), name
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not fit .* missing: "):
        load_backbone(encoder, tmp_path / "other.pth")
