"""What is minimised."""

import pytest
import torch

from sami.losses import feature_loss, valid_token_loss
from sami.ops.masking import split_by_noise


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(2, 8, 4), torch.randn(2, 8, 4), split_by_noise(torch.rand(2, 8), 0.75)


def test_mse_over_all_tokens_is_equation_1_divided_by_the_width(case):
    prediction, target, split = case
    equation = sum(((prediction[b, n] - target[b, n]) ** 2).sum() for b in range(2) for n in range(8)) / (2 * 8)
    loss = feature_loss(prediction, target, split, distance="mse", tokens="all")
    torch.testing.assert_close(loss, equation / 4)


def test_cosine_ignores_length_and_sees_direction(case):
    prediction, _, split = case
    same = feature_loss(prediction, 3 * prediction, split, distance="cosine", tokens="all")
    opposite = feature_loss(prediction, -prediction, split, distance="cosine", tokens="all")
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(opposite, torch.tensor(2.0))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_visible_tokens_do_not_count_when_the_loss_is_over_masked_ones(case, distance):
    prediction, target, split = case
    changed = prediction.clone()
    for image, ids in zip(changed, split.ids_keep, strict=True):
        image[ids] += 1
    masked = [feature_loss(p, target, split, distance=distance, tokens="masked") for p in (prediction, changed)]
    everything = [feature_loss(p, target, split, distance=distance, tokens="all") for p in (prediction, changed)]
    assert masked[0] == masked[1]
    assert everything[0] != everything[1]


def test_the_loss_is_computed_in_32_bits(case):
    prediction, target, split = case
    loss = feature_loss(prediction.bfloat16(), target.bfloat16(), split, distance="mse", tokens="all")
    assert loss.dtype == torch.float32
    assert loss == feature_loss(
        prediction.bfloat16().float(), target.bfloat16().float(), split, distance="mse", tokens="all"
    )


def test_unknown_names(case):
    with pytest.raises(ValueError, match=r"loss_tokens='visible': choose all or masked"):
        feature_loss(*case, distance="mse", tokens="visible")
    with pytest.raises(ValueError, match=r"loss_distance='l1': choose mse or cosine"):
        feature_loss(*case, distance="l1", tokens="all")


def test_valid_token_loss_leaves_padding_out() -> None:
    """By hand: two images, of which the second has one token that counts; what is in the padding changes nothing."""
    prediction, target = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    prediction[0, :, 0] = torch.tensor([1.0, 2.0, 3.0])
    prediction[1, 0] = torch.tensor([4.0, 0.0])
    prediction[1, 1:] = torch.inf
    token_valid = torch.tensor([[True, True, True], [True, False, False]])
    prediction.requires_grad_(True)
    loss = valid_token_loss(prediction, target, token_valid, distance="mse")
    assert loss.item() == pytest.approx(((1 + 4 + 9) / 6 + 16 / 2) / 2)  # means of images, then over images
    std = torch.tensor([2.0, 1.0])
    scaled = valid_token_loss(prediction, target, token_valid, distance="standardized_mse", std=std)
    assert scaled.item() == pytest.approx(loss.item() / 4)
    loss.backward()
    assert (prediction.grad[1, 1:] == 0).all() and (prediction.grad[1, 0, 0] != 0)
    with pytest.raises(ValueError, match="loss_distance='l1'"):
        valid_token_loss(prediction, target, token_valid, distance="l1")


def test_token_valid_cosine_and_an_image_of_padding_alone() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    prediction = torch.tensor([[[3.0, 0.0], [0.0, -2.0]], [[9.0, 1.0], [1.0, 1.0]]])
    token_valid = torch.tensor([[True, True], [False, False]])
    loss = valid_token_loss(prediction, target, token_valid, distance="cosine")
    assert loss.item() == pytest.approx(((0 + 2) / 2 + 0) / 2)
