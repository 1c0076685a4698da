"""Hiding tokens, and the way back into image order."""

import pytest
import torch

from sami.ops.masking import (
    merge_tokens,
    num_visible_tokens,
    patchify,
    split_by_noise,
    take_tokens,
)


@pytest.mark.parametrize("mask_ratio", [0, 0.4, 0.75])
def test_merge_inverts_split(mask_ratio):
    tokens = torch.randn(3, 20, 5)
    split = split_by_noise(torch.rand(3, 20), mask_ratio)
    visible, masked = take_tokens(tokens, split.ids_keep), take_tokens(tokens, split.ids_mask)
    assert visible.shape[1] + masked.shape[1] == 20
    assert torch.equal(merge_tokens(visible, masked, split), tokens)


def test_split_lists_every_token_once():
    split = split_by_noise(torch.rand(4, 196), 0.75)
    assert split.ids_keep.shape == (4, 49)
    assert split.ids_mask.shape == (4, 147)
    assert split.ids_restore.shape == (4, 196)
    assert all(ids.dtype == torch.int64 for ids in split)
    both = torch.cat([split.ids_keep, split.ids_mask], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(196).expand(4, -1))


def test_lowest_noise_stays_visible_in_its_order():
    split = split_by_noise(torch.tensor([[0.9, 0.1, 0.5, 0.0, 0.7, 0.8]]), 0.5)
    assert split.ids_keep.tolist() == [[3, 1, 2]]
    assert split.ids_mask.tolist() == [[4, 5, 0]]


def test_equal_noise_keeps_the_order_of_tokens():
    split = split_by_noise(torch.zeros(1, 500), 0.4)
    assert torch.equal(split.ids_keep[0], torch.arange(300))


@pytest.mark.parametrize(("num_tokens", "mask_ratio", "expected"), [(196, 0.75, 49), (196, 0, 196), (10, 0.75, 2)])
def test_number_of_visible_tokens(num_tokens, mask_ratio, expected):
    assert num_visible_tokens(num_tokens, mask_ratio) == expected


@pytest.mark.parametrize("mask_ratio", [-0.1, 1, 75])
def test_mask_ratio_must_be_a_fraction(mask_ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={mask_ratio} is the hidden fraction.* \[0, 1\)"):
        num_visible_tokens(196, mask_ratio)


def test_mask_ratio_must_keep_a_token():
    with pytest.raises(ValueError, match=r"mask_ratio=0.95 keeps 0 of 16 tokens: lower it, or use larger images"):
        split_by_noise(torch.rand(2, 16), 0.95)


def test_take_tokens():
    tokens, ids = torch.randn(2, 6, 3), torch.tensor([[5, 0], [2, 2]])
    expected = torch.stack([tokens[0, [5, 0]], tokens[1, [2, 2]]])
    assert torch.equal(take_tokens(tokens, ids), expected)


def test_patches_are_row_major_with_channels_last():
    image = torch.randn(2, 3, 8, 12)
    patches = patchify(image, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[1, 4], image[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())


@pytest.mark.parametrize("size", [(10, 8), (8, 10)])
def test_image_must_be_whole_patches(size):
    with pytest.raises(ValueError, match=rf"an image of {size[0]}x{size[1]} pixels .* 4x4 patches: use multiples of 4"):
        patchify(torch.zeros(1, 3, *size), 4)
