"""RepViT-SAM's encoder against its forward written out from the released names, and fused against unfused."""

import pytest
import torch
import torch.nn.functional as F
from released_files import shapes_of, write_checkpoint
from torch import Tensor

from sami.models.build import build_sam, save_sam
from sami.models.image_encoders.mobile import fuse_branches

PREFIX = "image_encoder.features."


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint("repvit_sam", tmp_path_factory.mktemp("repvit"))


def reference_encoder(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """The blocks of arXiv:2307.09283, Fig. 3, from released names alone; the last halving has stride 1 (320 -> 640)."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift)

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        kernel = weights[f"{name}.c.weight"]
        return norm(F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, **how), f"{name}.bn")

    x = conv(F.gelu(conv(image, f"{PREFIX}0.0", stride=2)), f"{PREFIX}0.2", stride=2)
    for number in range(1, 55):
        block, width = f"{PREFIX}{number}", x.shape[1]
        mixer = f"{block}.token_mixer"
        if f"{mixer}.2.c.weight" in weights:
            x = conv(conv(x, f"{mixer}.0", groups=width, stride=1 if width == 320 else 2), f"{mixer}.2")
        else:
            plain = F.conv2d(x, weights[f"{mixer}.0.conv1.weight"], weights[f"{mixer}.0.conv1.bias"], groups=width)
            x = norm(conv(x, f"{mixer}.0.conv", groups=width) + plain + x, f"{mixer}.0.bn")
            if f"{mixer}.1.fc1.weight" in weights:
                gate = x.mean((2, 3), keepdim=True)
                for layer, activation in (("fc1", F.relu), ("fc2", torch.sigmoid)):
                    kernel, bias = (weights[f"{mixer}.1.{layer}.{key}"] for key in ("weight", "bias"))
                    gate = activation(F.conv2d(gate, kernel, bias))
                x = x * gate
        x = x + conv(F.gelu(conv(x, f"{block}.channel_mixer.m.0")), f"{block}.channel_mixer.m.2")

    def layer_norm(x: Tensor, name: str) -> Tensor:
        moved = F.layer_norm(x.movedim(1, -1), x.shape[1:2], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)
        return moved.movedim(-1, 1)

    x = layer_norm(F.conv2d(x, weights["image_encoder.neck.0.weight"]), "image_encoder.neck.1")
    return layer_norm(F.conv2d(x, weights["image_encoder.neck.2.weight"], padding=1), "image_encoder.neck.3")


@torch.no_grad()
def test_encoder_from_released_names(released: str) -> None:
    sam, image = build_sam("repvit_sam", released), torch.randn(1, 3, 96, 64)
    embedding = sam.embed(image)
    assert embedding.shape == (1, 256, 6, 4)
    torch.testing.assert_close(embedding, reference_encoder(torch.load(released), image), rtol=1e-4, atol=1e-4)


def draw_statistics(encoder: torch.nn.Module) -> None:
    """Batch norms get numbers of a trained network's size. With the stand-in weights activations grow to 1e11, and 32
    bits keep three digits of the embedding, fused or not; here they keep five."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.normal_(1, 0.1).clamp_(0.5)
            module.weight.copy_(module.weight + 0.3 * torch.randn_like(module.weight))
            module.bias.normal_(0, 0.1)


@pytest.mark.parametrize("name", ["repvit_sam", "mobile_sam"])
@torch.no_grad()
def test_fused_gives_the_same(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    sam, image = build_sam(name), torch.randn(2, 3, 96, 96)
    draw_statistics(sam.image_encoder)
    save_sam(sam, tmp_path / "sam.safetensors")
    fused = build_sam(name, tmp_path / "sam.safetensors", fused=True)
    torch.testing.assert_close(fused.embed(image), sam.embed(image), rtol=0, atol=1e-4)
    modules = list(fused.image_encoder.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in modules)
    assert len(modules) < 0.8 * len(list(sam.image_encoder.modules()))
    with pytest.raises(ValueError, match="evaluation mode"):
        fuse_branches(sam.train().image_encoder)
    with pytest.raises(ValueError, match="fused"):
        save_sam(fused, tmp_path / "fused.safetensors")


def test_the_smaller_repvit_ends_at_16_pixels() -> None:
    with torch.device("meta"):
        sam = build_sam("repvit_sam_m1_1")
        assert sam.embed(torch.empty(1, 3, 1024, 1024)).shape == (1, 256, 64, 64)
    assert len(shapes_of("repvit_sam")) > len(sam.state_dict())
