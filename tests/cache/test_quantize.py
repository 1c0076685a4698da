"""One byte per number: how far off it may be, and what does not fit."""

import math

import pytest
import torch

from sami.cache.quantize import dequantize, quantize

NORMAL = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
FEATURES = {
    "normal": NORMAL,
    "long tails": NORMAL**5,
    "skewed": NORMAL.exp(),
    "1e4": 1e4 * NORMAL,
    "1e-4": 1e-4 * NORMAL,
    "every magnitude": NORMAL * torch.logspace(-4, 4, 8) + torch.linspace(-1e4, 1e4, 8),
    "one outlier": torch.cat([NORMAL, torch.full((3, 1, 8), 1e3)], dim=1),
    "offset": 1e3 + 0.1 * NORMAL,
    "offset between two numbers of 16 bits": 10_003 + 0.01 * NORMAL,
    "constant": NORMAL[:, :1].expand(-1, 50, -1),
    "constant and large": torch.full((1, 4, 2), 65_519.0),
    "zero": torch.zeros(1, 4, 2),
    "one token": NORMAL[:, :1],
    "1e-6": 1e-6 * NORMAL,
    "1e-7": 1e-7 * NORMAL,
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_no_number_is_off_by_more_than_half_a_step(features: torch.Tensor) -> None:
    codes, center, scale = quantize(features)
    assert (codes.dtype, center.dtype, scale.dtype) == (torch.int8, torch.float16, torch.float16)
    assert codes.shape == features.shape and center.shape == scale.shape == (len(features), features.shape[2])
    step = scale.double()[:, None]
    exact = center.double()[:, None] + codes.double() * step
    assert (step > 0).all()
    assert ((exact - features.double()).abs() <= step * 0.50001).all()  # 127, in 32 bits, is itself off by 1e-5
    torch.testing.assert_close(dequantize(codes, center, scale), exact.float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["normal", "long tails", "1e4", "one outlier"])
def test_a_step_is_a_254th_of_the_range(name: str) -> None:
    codes, _, scale = quantize(FEATURES[name])
    low, high = FEATURES[name].aminmax(dim=1)
    torch.testing.assert_close(scale.float(), (high - low) / 254, rtol=4e-3, atol=0)
    assert codes.amax() == 127 and codes.amin() == -127


@pytest.mark.parametrize(
    ("low", "high"), [(7e4, 7.1e4), (-7.1e4, -7e4), (-1e7, 1e7), (0, 3e38), (-1, math.inf), (0, math.nan)]
)
def test_what_does_not_fit_is_infinite(low: float, high: float) -> None:
    _, center, scale = quantize(torch.tensor([[[low, 1.0], [high, 2.0]]]))
    assert (center.isfinite() & scale.isfinite()).tolist() == [[False, True]]


def test_each_image_and_channel_has_its_own_range() -> None:
    codes, center, scale = quantize(NORMAL)
    for image in range(3):
        for channel in range(8):
            alone = quantize(NORMAL[image : image + 1, :, channel : channel + 1])
            assert torch.equal(alone[0][0, :, 0], codes[image, :, channel])
            assert (alone[1], alone[2]) == (center[image, channel], scale[image, channel])


def test_a_mean_of_codes_is_the_mean_of_what_they_stand_for() -> None:
    codes, center, scale = quantize(FEATURES["offset"])
    weights = torch.rand(7, 50, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    expected = weights @ dequantize(codes, center, scale)
    torch.testing.assert_close(dequantize(weights @ codes.float(), center, scale), expected)
