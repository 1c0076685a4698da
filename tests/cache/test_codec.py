"""Targets to what is stored, and back."""

import math

import pytest
import torch

from sami.cache.codec import STORAGES, TargetCodec, arrive, dequantize, encode_and_measure, quantize, to_host
from sami.ops.area_resize import area_crop
from sami.ops.pca import fit_pca

GRID, E = (6, 5), 48
TOLERANCE = {"fp32": 1e-6, "fp16": 2**-11, "int8": 5e-3}  # of the largest number of an image


def draw_target(B: int = 3, *, rank: int = E) -> torch.Tensor:
    """[B, N, E] as a final LayerNorm gives them: a few channels are much larger than the others, or far from zero."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(rank, E, generator=generator)
    tokens = torch.randn(B, GRID[0] * GRID[1], rank, generator=generator) @ mixing
    gain, bias = torch.ones(E), torch.zeros(E)
    gain[[3, 20]], bias[[3, 31]] = 15.0, 12.0
    return torch.nn.functional.layer_norm(tokens, (E,), gain, bias)


def build(storage: str, channels: int | None = None, target: torch.Tensor | None = None) -> TargetCodec:
    tokens = (draw_target() if target is None else target).flatten(0, 1)
    return TargetCodec(storage, E, fit_pca(tokens, channels) if channels else None)


@pytest.mark.parametrize("channels", [None, E])
@pytest.mark.parametrize("storage", STORAGES)
def test_targets_come_back(storage: str, channels: int | None) -> None:
    target, codec = draw_target(), build(storage, channels)
    stored = codec.encode(target)
    assert stored.keys() == ({"values", "center", "scale"} if storage == "int8" else {"values"})
    assert stored["values"].shape == target.shape and stored["values"].element_size() == STORAGES[storage]
    decoded = codec.decode(stored)
    assert decoded.dtype == torch.float32
    assert (decoded - target).abs().max() < TOLERANCE[storage] * target.abs().max()
    if storage == "fp32" and channels is None:
        assert torch.equal(decoded, target)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_basis_keeps_the_nearest_of_its_space(storage: str) -> None:
    target = draw_target()
    mean, components = fit_pca(target.flatten(0, 1), 9)
    codec = TargetCodec(storage, E, (mean, components))
    stored = codec.encode(target)
    assert codec.channels == 9 and stored["values"].shape == (3, 30, 9)
    nearest = (target - mean) @ components @ components.T + mean
    assert (codec.decode(stored) - nearest).abs().max() < TOLERANCE[storage] * target.abs().max()


def test_one_byte_keeps_the_cosine_of_features_with_outlier_channels() -> None:
    """Also that of the other channels alone: each has a step of its own."""
    target, codec = draw_target(), build("int8")
    decoded = codec.decode(codec.encode(target))
    for channels in (range(E), sorted(set(range(E)) - {3, 20, 31})):
        cosine = torch.cosine_similarity(decoded[..., channels], target[..., channels], dim=2)
        assert cosine.shape == (3, 30) and cosine.min() >= 0.999


@pytest.mark.parametrize("channels", [None, 9])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_crop_of_what_is_stored_is_the_crop_of_the_target(storage: str, channels: int | None) -> None:
    target, codec = draw_target(), build(storage, channels)
    regions = torch.tensor([[0, 0, 6, 5], [1.3, 0.7, 4.9, 4.8], [2, 1, 5, 4]])
    flip, stored = torch.tensor([False, True, False]), codec.encode(target)
    cropped = codec.decode_crop(stored, regions, flip, given=GRID, wanted=(3, 4))
    maps = codec.decode(stored).transpose(1, 2).unflatten(2, GRID)
    expected = area_crop(maps, regions, (3, 4), flip).flatten(2).transpose(1, 2)
    assert cropped.shape == (3, 12, E) and cropped.dtype == torch.float32
    torch.testing.assert_close(cropped, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("channels", [None, 9])
@pytest.mark.parametrize("storage", STORAGES)
def test_autocast_changes_nothing(storage: str, channels: int | None) -> None:
    target, codec = draw_target(), build(storage, channels)
    regions, flip = torch.tensor([[1.3, 0.7, 4.9, 4.8]]).expand(3, -1), torch.tensor([False, True, False])

    def everything() -> list[torch.Tensor]:
        stored = codec.encode(target)
        return [
            *stored.values(),
            codec.decode(stored),
            codec.decode_crop(stored, regions, flip, given=GRID, wanted=GRID),
        ]

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for here, expected in zip(everything(), plain, strict=True):
            assert here.dtype == expected.dtype and torch.equal(here, expected)


def test_targets_of_16_bits_are_stored_as_they_are() -> None:
    target = draw_target().bfloat16()
    values = TargetCodec("fp32", E).encode(target)["values"]
    assert values.dtype == torch.float32 and torch.equal(values, target.float())


def test_unknown_storage() -> None:
    with pytest.raises(ValueError, match=r"^storage='int4': choose fp32, fp16, int8"):
        TargetCodec("int4", E)


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


def test_figures_are_those_of_the_counted_tokens() -> None:
    B, N, E = 3, 6, 4
    torch.manual_seed(0)
    target = 3 + torch.randn(B, N, E)
    counted = torch.rand(B, N) < 0.6
    counted[1] = False
    target[~counted] = 1000  # padding, which is stored but is no figure's business
    stored, figures = encode_and_measure(TargetCodec("fp16", E), target, counted)
    assert stored["values"].shape == (B, N, E)
    decoded = stored["values"].float()
    for image in range(B):
        exact, found = target[image][counted[image]], decoded[image][counted[image]]  # [T, E]
        assert figures["tokens"][image] == len(exact) and figures["views"][image] == (len(exact) > 0)
        torch.testing.assert_close(figures["sum"][image], exact.double().sum(0))
        torch.testing.assert_close(figures["sum_of_squares"][image], exact.double().square().sum(0), rtol=1e-6, atol=0)
        error = (found - exact).double().square().sum()
        torch.testing.assert_close(figures["squared_error"][image], error, rtol=1e-4, atol=1e-12)
        if len(exact):
            cosine = torch.cosine_similarity(found, exact, dim=1).double().mean()
            torch.testing.assert_close(figures["cosine"][image], cosine)
            relative = (error / exact.double().square().sum()).sqrt()
            torch.testing.assert_close(figures["relative_error"][image], relative, rtol=1e-4, atol=1e-12)
    assert figures["relative_error"][1] == figures["cosine"][1] == 0


def test_to_host_and_back() -> None:
    copies, event = to_host({"a": torch.arange(3)}, torch.device("cpu"))
    assert event is None and arrive(copies, event)["a"].tolist() == [0, 1, 2]
