"""Targets to what is stored, and back."""

import pytest
import torch

from sami.cache.codec import STORAGES, TargetCodec
from sami.ops.pca import fit_pca
from sami.ops.resize import area_crop

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
    with pytest.raises(ValueError, match=r"cache.storage='int4': choose fp32, fp16, int8"):
        TargetCodec("int4", E)
