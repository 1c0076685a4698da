"""The whole student: encode visible, decode masked, merge, project."""

from functools import partial

import pytest
import torch

from sami.benchmark.reference_mae import PlainMAE
from sami.models.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from sami.models.sami import SAMI
from sami.models.vit import ViT
from sami.ops.masking import split_by_noise


def build(kind: type) -> SAMI:
    torch.manual_seed(0)
    encoder = ViT("tiny", image_size=64)
    encoder.blocks = encoder.blocks[:2]
    return SAMI(encoder, partial(kind, width=32, depth=2, num_heads=4), target_width=7)


@pytest.fixture(params=[CrossAttentionDecoder, SelfAttentionDecoder])
def network(request) -> SAMI:
    return build(request.param)


@pytest.mark.parametrize("mask_ratio", [0, 0.4, 0.75])
def test_predicts_every_token_at_any_ratio(network, mask_ratio):
    prediction = network(torch.randn(2, 3, 64, 64), split_by_noise(torch.rand(2, 16), mask_ratio))
    assert prediction.shape == (2, 16, 7)
    assert prediction.isfinite().all()


def test_hidden_pixels_do_not_reach_the_prediction(network):
    image, split = torch.randn(1, 3, 64, 64), split_by_noise(torch.rand(1, 16), 0.75)
    changed = image.clone()
    for n in split.ids_mask[0].tolist():
        y, x = 16 * (n // 4), 16 * (n % 4)
        changed[:, :, y : y + 16, x : x + 16] = 1e3
    assert torch.equal(network(image, split), network(changed, split))


def test_everything_trainable_learns(network):
    split = split_by_noise(torch.rand(2, 16), 0.75)
    network(torch.randn(2, 3, 64, 64), split).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []
    assert network.encoder.cls_token.grad.abs().max() > 0


def test_learns_one_batch(network):
    torch.manual_seed(0)
    image, target = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 7)
    split = split_by_noise(torch.rand(2, 16), 0.75)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = (network(image, split) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_mae_s_own_design_is_what_our_parts_compute():
    """The yardstick of the speed comparison predicts what SAMI with MAE's decoder predicts from the same weights."""
    torch.manual_seed(0)
    plain = PlainMAE("tiny", 32, target_width=5)
    ours = SAMI(ViT("tiny", image_size=32), SelfAttentionDecoder, target_width=5)
    ours.encoder.load_state_dict(plain.encoder.state_dict())
    ours.head.load_state_dict(plain.head.state_dict())
    decoder = {n: p for n, p in plain.state_dict().items() if not n.startswith(("encoder.", "head."))}
    ours.decoder.load_state_dict(decoder)
    image, split = torch.randn(2, 3, 32, 32), split_by_noise(torch.rand(2, 4), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(ours(image, split), plain(image, split), rtol=0, atol=1e-4)
