"""The student sees any subset of its patches, and stays timm's ViT."""

import pytest
import timm
import torch
from torch import nn

from sami.models.vit import SIZES, ViT, init_linears, take_patches
from sami.ops.masking import split_by_noise, take_tokens
from sami.ops.pos_embed import sincos_pos_embed


@pytest.fixture(scope="module")
def encoder() -> ViT:
    torch.manual_seed(0)
    encoder = ViT("tiny", image_size=64)
    encoder.blocks = encoder.blocks[:2]
    return encoder


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


def test_all_tokens_visible_is_timm_s_forward(encoder, image):
    all_ids = torch.arange(16).expand(2, -1)
    ours, timms = encoder.encode_visible(image, all_ids), encoder.forward_features(image)
    assert ours.shape == (2, 17, 192)
    torch.testing.assert_close(ours, timms, rtol=0, atol=1e-5)


def test_order_of_ids_is_order_of_tokens(encoder, image):
    ids = torch.stack([torch.randperm(16), torch.randperm(16)])
    expected = take_tokens(encoder.forward_features(image)[:, 1:], ids)
    torch.testing.assert_close(encoder.encode_visible(image, ids)[:, 1:], expected, rtol=0, atol=1e-5)


def test_hidden_pixels_change_nothing(encoder, image):
    split = split_by_noise(torch.rand(2, 16), 0.75)
    changed = image.clone().requires_grad_()
    visible = encoder.encode_visible(changed, split.ids_keep)
    assert visible.shape == (2, 5, 192)
    visible.square().sum().backward()
    touched = changed.grad.unfold(2, 16, 16).unfold(3, 16, 16).abs().sum(dim=(1, 4, 5)).flatten(1) > 0  # [B, N]
    expected = torch.zeros(2, 16, dtype=torch.bool).scatter(1, split.ids_keep, True)
    assert torch.equal(touched, expected)


def test_take_patches_feeds_a_convolution_s_weight():
    image, convolution = torch.randn(2, 3, 32, 48), nn.Conv2d(3, 7, kernel_size=16, stride=16)
    ids = torch.stack([torch.randperm(6)[:4] for _ in range(2)])
    patches = take_patches(image, ids, patch_size=16)
    assert patches.shape == (2, 4, 768)
    expected = take_tokens(convolution(image).flatten(2).transpose(1, 2), ids)
    embedded = patches @ convolution.weight.flatten(1).T + convolution.bias
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-5)


def test_the_class_token_learns(encoder, image):
    encoder.zero_grad()
    encoder.encode_visible(image, torch.tensor([[0, 3], [5, 1]]))[:, 1:].square().mean().backward()
    assert encoder.cls_token.grad.abs().max() > 0


def test_state_dict_loads_strictly_into_timm():
    encoder = ViT("tiny")
    timms = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    timms.load_state_dict(encoder.state_dict(), strict=True)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = encoder.eval().encode_visible(image, torch.arange(196)[None])
        torch.testing.assert_close(ours, timms.eval().forward_features(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_timm_s(size):
    with torch.device("meta"):
        timms = timm.create_model(f"vit_{size}_patch16_224", num_classes=0)
        ours = ViT(size, pos_embed="learned")
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (ours, timms)]
    assert shapes[0] == shapes[1]
    assert [block.attn.num_heads for block in ours.blocks] == [block.attn.num_heads for block in timms.blocks]


def test_positions():
    fixed, learned = ViT("tiny", image_size=32), ViT("tiny", image_size=32, pos_embed="learned")
    assert torch.equal(fixed.pos_embed, sincos_pos_embed((2, 2), 192, num_prefix_tokens=1))
    assert not fixed.pos_embed.requires_grad
    assert learned.pos_embed.requires_grad
    assert fixed.grid_size == (2, 2)
    assert fixed.num_tokens == 4


def test_initialisation():
    module = nn.Sequential(nn.Conv2d(3, 8, 4), nn.Linear(8, 8), nn.LayerNorm(8))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 7.0)
    init_linears(module)
    convolution, linear, norm = module
    bound = (6 / (48 + 8)) ** 0.5  # Xavier's, of the patch embedding as one matrix from 48 numbers to 8
    assert 0.8 * bound < convolution.weight.abs().max() <= bound
    assert 0.8 * (6 / 16) ** 0.5 < linear.weight.abs().max() <= (6 / 16) ** 0.5
    assert (norm.weight == 1).all()
    assert all((layer.bias == 0).all() for layer in module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "size='huge': choose one of tiny, small, base"),
        ({"image_size": 100}, "image_size=100 is not a multiple of patch_size=16"),
        ({"pos_embed": "rope"}, "pos_embed='rope': choose sincos or learned"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        ViT(**{"size": "tiny", **options})
