"""Backbones of timm as image encoders, and pretrained weights for them."""

import pytest
import timm
import torch

from sami.models.build import build_sam, load_backbone, save_sam
from sami.models.image_encoders.mobile import TinyViTEncoder
from sami.models.image_encoders.timm import TimmEncoder


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_maps_at_16_pixels_from_any_layout(name: str) -> None:
    encoder = TimmEncoder(name, image_size=64).train()
    image = torch.randn(2, 3, 64, 96)
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        embedding = encoder(image)
        assert embedding.shape == (2, 256, 4, 6)
        embedding.square().mean().backward()
        assert all(parameter.grad is not None for parameter in encoder.neck.parameters())
    with pytest.raises(ValueError, match="72x64 pixels is not a whole number"):
        encoder(torch.randn(1, 3, 72, 64))


def test_channels_last_and_one_size_only() -> None:
    with torch.device("meta"):
        encoder = TimmEncoder("swin_tiny_patch4_window7_224", image_size=256)
        assert encoder(torch.empty(1, 3, 256, 256)).shape == (1, 256, 16, 16)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_every_map_reaches_the_embedding(stride: int) -> None:
    """What lies at 32 pixels is most of what a convolutional network knows; at 8 it knows where in a cell."""
    encoder = TimmEncoder("test_resnet", image_size=64).eval()
    assert list(encoder.taken) == [8, 16, 32]
    image = torch.randn(1, 3, 64, 64)
    maps = encoder.backbone(image)
    before = encoder(image)
    channels = {k: maps[i].shape[1] * (4 if k == 8 else 1) for k, i in encoder.taken.items()}
    first = sum(width for k, width in channels.items() if k < stride)
    with torch.no_grad():
        encoder.neck[0].weight[:, first : first + channels[stride]] = 0
    assert encoder.neck[0].in_channels == sum(channels.values()) and not torch.allclose(encoder(image), before)


def test_maps_of_any_size_count_alike_and_the_finest_keeps_its_cells() -> None:
    encoder = TimmEncoder("test_resnet", image_size=64).eval()
    fine, middle, deep = torch.randn(1, 5, 8, 8), torch.randn(1, 3, 4, 4), torch.randn(1, 2, 2, 2)
    seen = []
    encoder.taken = {8: 0, 16: 1, 32: 2}
    encoder.neck = torch.nn.Identity()
    for maps in ([fine, middle, deep], [1000 * fine, 0.1 * middle + 7, deep]):
        encoder.backbone.forward = lambda image, maps=maps: maps
        seen.append(encoder(torch.zeros(1, 3, 64, 64)))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=1e-3)
    assert seen[0].shape == (1, 4 * 5 + 3 + 2, 4, 4)
    cells = seen[0][0, :20].view(5, 2, 2, 4, 4)  # channel, row and column within the cell, cell
    torch.testing.assert_close(cells[3, 1, 0], torch.nn.functional.group_norm(fine, 1)[0, 3, 1::2, 0::2])


def test_unknown_names_and_unfit_models() -> None:
    with pytest.raises(ValueError, match=r"'resnet19' is no timm model. Close to it: .*resnet18"):
        build_sam("timm/resnet19")
    with pytest.raises(ValueError, match="needed 16"):
        build_sam("timm/vit_small_patch32_224")


def test_its_file_describes_it(tmp_path) -> None:
    sam = build_sam("timm/test_resnet", image_size=64)
    save_sam(sam, tmp_path / "sam.safetensors")
    again = build_sam(checkpoint=tmp_path / "sam.safetensors")
    assert (again.name, again.image_size) == ("timm/test_resnet", 64)
    torch.testing.assert_close(again.state_dict(), sam.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_file_of_timm_starts_the_backbone(name: str, tmp_path) -> None:
    network = timm.create_model(name, num_classes=7)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    encoder = TimmEncoder(name, image_size=64)
    neck = [value.clone() for value in encoder.neck.state_dict().values()]
    load_backbone(encoder, tmp_path / "net.pth")
    theirs = network.eval().forward_intermediates(torch.ones(1, 3, 64, 64), intermediates_only=True)[-1]
    torch.testing.assert_close(encoder.eval().backbone(torch.ones(1, 3, 64, 64))[-1], theirs)
    assert all(torch.equal(a, b) for a, b in zip(neck, encoder.neck.state_dict().values(), strict=True))


def test_sams_own_encoder_has_no_backbone(tmp_path) -> None:
    with torch.device("meta"):
        sam = build_sam("sam_vit_b")
    with pytest.raises(ValueError, match="come whole"):
        load_backbone(sam.image_encoder, tmp_path / "x.pth")


def test_without_network_it_says_what_to_do(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", refuse)
    encoder = TinyViTEncoder.__new__(TinyViTEncoder)
    torch.nn.Module.__init__(encoder)
    encoder.name = "tiny_vit_5m_224"
    with pytest.raises(ConnectionError, match=r"backbone=hub.*no route.*timm/tiny_vit_5m_224"):
        load_backbone(encoder, "hub")
