"""The whole student: encode visible, decode masked, merge, project; the decoders against slow plain ones."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from sami.benchmark.reference_mae import PlainMAE
from sami.models.sami import SAMI, CrossAttentionBlock, CrossAttentionDecoder, SelfAttentionDecoder
from sami.models.vit import ViT
from sami.ops.masking import MaskSplit, split_by_noise, take_tokens

GRID, D, C, HEADS = (3, 4), 10, 16, 4


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


@pytest.fixture
def split() -> MaskSplit:
    torch.manual_seed(1)
    return split_by_noise(torch.rand(2, 12), 0.75)


@pytest.fixture
def visible() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 4, D)  # class token and 3 of 12


def build_decoder(kind: type, **options) -> torch.nn.Module:
    torch.manual_seed(3)
    decoder = kind(D, GRID, width=C, depth=3, num_heads=HEADS, **options)
    for name, parameter in decoder.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(parameter, std=0.3)  # biases and norms that do something
    return decoder


def decode_plainly(decoder: CrossAttentionDecoder, visible: torch.Tensor, split: MaskSplit, *, context: str):
    """One image, one token, one head at a time, softmax written out."""
    pos = decoder.pos_embed[0]  # [1 + N, C]
    images = []
    for b in range(len(visible)):
        keep, mask = split.ids_keep[b].tolist(), split.ids_mask[b].tolist()
        encoded = [decoder.embed(token) for token in visible[b]]
        places = [0, *[1 + n for n in keep]]
        anchors = [decoder.anchor_norm(token + pos[place]) for token, place in zip(encoded, places, strict=True)]
        masked = {n: decoder.mask_token[0, 0] + pos[1 + n] for n in mask}
        for block in decoder.blocks:
            normed = {n: block.norm1(token) for n, token in masked.items()}
            context_tokens = anchors + (list(normed.values()) if context == "all" else [])
            pairs = [block.kv(token) for token in context_tokens]
            for n in mask:
                q, heads = block.q(normed[n]), []
                for first in range(0, C, C // HEADS):
                    part = slice(first, first + C // HEADS)
                    scores = [(q[part] * kv[:C][part]).sum() / math.sqrt(C // HEADS) for kv in pairs]
                    total = sum(score.exp() for score in scores)
                    heads.append(
                        sum(score.exp() / total * kv[C:][part] for score, kv in zip(scores, pairs, strict=True))
                    )
                masked[n] = masked[n] + block.proj(torch.cat(heads))
                masked[n] = masked[n] + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(masked[n]))))
        tokens = {**masked, **dict(zip(keep, encoded[1:], strict=True))}
        images.append(torch.stack([decoder.norm(tokens[n]) for n in range(len(tokens))]))
    return torch.stack(images)


@pytest.mark.parametrize("context", ["all", "encoder"])
def test_equals_a_plain_decoder(visible, split, context):
    decoder = build_decoder(CrossAttentionDecoder, context=context)
    with torch.no_grad():
        tokens = decoder(visible, split)
        assert tokens.shape == (2, 12, C)
        torch.testing.assert_close(tokens, decode_plainly(decoder, visible, split, context=context), rtol=0, atol=1e-5)


def test_only_masked_tokens_are_decoded(visible, split):
    decoder = build_decoder(CrossAttentionDecoder)
    tokens = decoder(visible, split)
    torch.testing.assert_close(take_tokens(tokens, split.ids_keep), decoder.norm(decoder.embed(visible[:, 1:])))
    for parameter in decoder.blocks.parameters():
        torch.nn.init.normal_(parameter)
    changed = (decoder(visible, split) - tokens).abs().amax(dim=-1) > 1e-6  # [B, N]
    assert torch.equal(changed, torch.zeros(2, 12, dtype=torch.bool).scatter(1, split.ids_mask, True))


@pytest.mark.parametrize(("context", "sees"), [("all", True), ("encoder", False)])
def test_masked_tokens_see_each_other_with_context_all(split, context, sees):
    block = CrossAttentionBlock(C, HEADS, attend_masked=context == "all")
    masked, anchors = torch.randn(1, 5, C), torch.randn(1, 3, C)
    changed = masked.clone()
    changed[:, 4] += torch.randn(C)
    difference = (block(masked, anchors) - block(changed, anchors)).abs().amax(dim=-1)[0]
    assert ((difference[:4] > 1e-6) == sees).all()


@pytest.mark.parametrize("kind", [CrossAttentionDecoder, SelfAttentionDecoder])
def test_the_class_token_and_every_parameter_learn(visible, split, kind):
    decoder, visible = build_decoder(kind), visible.clone().requires_grad_()
    take_tokens(decoder(visible, split), split.ids_mask).pow(3).sum().backward()
    assert (visible.grad.abs().amax(dim=-1) > 1e-6).all()
    assert all(p.grad.abs().max() > 0 for p in decoder.parameters() if p.requires_grad)
    assert not decoder.pos_embed.requires_grad


@pytest.mark.parametrize("kind", [CrossAttentionDecoder, SelfAttentionDecoder])
def test_the_order_of_visible_tokens_does_not_matter(visible, split, kind):
    decoder, order = build_decoder(kind), torch.tensor([2, 0, 1])
    shuffled = torch.cat([split.ids_keep[:, order], split.ids_mask], dim=1)
    other = MaskSplit(split.ids_keep[:, order], split.ids_mask, shuffled.argsort(dim=1))
    tokens = decoder(torch.cat([visible[:, :1], visible[:, 1:][:, order]], dim=1), other)
    torch.testing.assert_close(tokens, decoder(visible, split), rtol=0, atol=1e-5)


def test_self_attention_decoder_is_mae_s(visible, split):
    decoder = build_decoder(SelfAttentionDecoder)
    tokens = decoder.mask_token.repeat(2, 12, 1)
    encoded = decoder.embed(visible)
    for b in range(2):
        tokens[b, split.ids_keep[b]] = encoded[b, 1:]
    tokens = torch.cat([encoded[:, :1], tokens], dim=1) + decoder.pos_embed
    for block in decoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(decoder(visible, split), decoder.norm(tokens)[:, 1:])


def test_as_the_paper_states_it():
    with torch.device("meta"):
        decoders = [kind(384, (14, 14)) for kind in (CrossAttentionDecoder, SelfAttentionDecoder)]
    assert all(decoder.width == 512 and len(decoder.blocks) == 8 for decoder in decoders)
    assert decoders[0].blocks[0].num_heads == decoders[1].blocks[0].attn.num_heads == 16
    assert decoders[0].blocks[0].attend_masked


def test_mistakes():
    with pytest.raises(ValueError, match=r"context='masked': choose all or encoder"):
        build_decoder(CrossAttentionDecoder, context="masked")
    with pytest.raises(ValueError, match=r"a decoder of width=16 does not divide into num_heads=3"):
        CrossAttentionBlock(16, 3, attend_masked=True)
