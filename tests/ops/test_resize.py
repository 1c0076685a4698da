import pytest
import torch
import torch.nn.functional as F

from sami.ops.resize import area_resize, overlap_weights


def slow_overlap(given: int, wanted: int) -> torch.Tensor:
    weights = torch.zeros(wanted, given)
    for i in range(wanted):
        low, high = i * given / wanted, (i + 1) * given / wanted
        for j in range(given):
            weights[i, j] = max(0.0, min(high, j + 1) - max(low, j)) / (high - low)
    return weights


@pytest.mark.parametrize(("given", "wanted"), [(64, 14), (16, 14), (7, 3), (3, 7), (28, 14)])
def test_weights_are_the_overlaps(given, wanted):
    torch.testing.assert_close(overlap_weights(given, wanted), slow_overlap(given, wanted))


def test_mean_is_preserved_for_fractional_ratios():
    features = torch.rand(2, 5, 64, 48)
    resized = area_resize(features, (14, 13))
    assert resized.shape == (2, 5, 14, 13)
    torch.testing.assert_close(resized.mean((2, 3)), features.mean((2, 3)), rtol=0, atol=1e-6)


def test_equals_avg_pool_for_whole_ratios():
    features = torch.randn(2, 3, 28, 42)
    torch.testing.assert_close(area_resize(features, (14, 14)), F.avg_pool2d(features, (2, 3)))


def test_rows_stay_rows():
    ramp = torch.arange(64.0).reshape(1, 1, 64, 1).expand(-1, -1, -1, 32)  # grows with y only
    resized = area_resize(ramp, (14, 7))[0, 0]
    torch.testing.assert_close(resized, resized[:, :1].expand(-1, 7))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


def test_half_precision_is_averaged_in_float32():
    features = torch.full((1, 1, 64, 64), 3.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resized = area_resize(features, (14, 14))
        ones = area_resize(torch.ones(1, 1, 64, 64), (14, 14))
    assert resized.dtype == torch.bfloat16
    assert (resized == 3).all()
    torch.testing.assert_close(ones, torch.ones(1, 1, 14, 14), rtol=0, atol=1e-6)
