import pytest
import torch
import torch.nn.functional as F

from sami.ops.area_resize import area_crop, area_resize, interval_weights, overlap_weights


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


def regions_of(*regions: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(regions, dtype=torch.float32)


def unflipped(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


@pytest.mark.parametrize("size", [(14, 13), (64, 48), (5, 70)])
def test_the_whole_map_is_resized(size):
    features = torch.randn(2, 3, 64, 48)
    cropped = area_crop(features, regions_of((0, 0, 64, 48), (0, 0, 64, 48)), size, unflipped(2))
    torch.testing.assert_close(cropped, area_resize(features, size), rtol=0, atol=1e-5)


def test_whole_cells_are_cut_out():
    features = torch.randn(2, 3, 16, 20)
    cropped = area_crop(features, regions_of((3, 1, 10, 15), (9, 6, 16, 20)), (7, 14), unflipped(2))
    expected = torch.stack([features[0, :, 3:10, 1:15], features[1, :, 9:16, 6:20]])
    torch.testing.assert_close(cropped, expected, rtol=0, atol=1e-6)


def test_flip_mirrors_the_crop():
    features, regions = torch.randn(3, 2, 16, 20), regions_of(*[(3.3, 1.2, 10.1, 17.9)] * 3)
    plain = area_crop(features, regions, (5, 4), unflipped(3))
    some = area_crop(features, regions, (5, 4), torch.tensor([True, False, True]))
    assert torch.equal(some, torch.stack([plain[0].flip(-1), plain[1], plain[2].flip(-1)]))


@pytest.mark.parametrize("region", [(3.3, 1.2, 10.1, 17.9), (0, 0.5, 2.25, 20), (15.1, 0, 16, 0.4), (7.6, 7.1, 8.3, 9)])
def test_a_cell_is_the_mean_over_its_area(region):
    features, n = torch.rand(1, 2, 16, 20), 300  # samples of each new cell along each side
    top, left, bottom, right = region
    y = top + (bottom - top) * (torch.arange(4 * n, dtype=torch.float64) + 0.5) / (4 * n)
    x = left + (right - left) * (torch.arange(3 * n, dtype=torch.float64) + 0.5) / (3 * n)
    sampled = features[:, :, y.long()][..., x.long()]
    expected = F.avg_pool2d(sampled, n)
    torch.testing.assert_close(
        area_crop(features, regions_of(region), (4, 3), unflipped(1)), expected, rtol=0, atol=0.01
    )


def test_a_region_within_a_cell_is_that_cell():
    features = torch.randn(1, 5, 64, 64)
    cropped = area_crop(features, regions_of((63.9, 50.1, 63.95, 50.2)), (14, 14), unflipped(1))
    torch.testing.assert_close(cropped, features[:, :, 63:, 50:51].expand(-1, -1, 14, 14))


@pytest.mark.parametrize(("start", "end"), [(0, 64), (-1e-5, 64.0001), (11.7, 64.0001), (63.99, 64.00001), (0.3, 0.31)])
def test_weights_of_a_region_add_up_to_one(start, end):
    weights = interval_weights(torch.tensor([start]), torch.tensor([end]), 64, 14)
    assert weights.shape == (1, 14, 64) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 14))
    assert (weights[0, :, : int(max(start, 0))] == 0).all()


def test_crops_of_any_number_type_are_averaged_in_float32():
    features, regions = torch.full((1, 1, 64, 64), 101), regions_of((0.3, 1.7, 50.2, 63.1))
    for dtype in (torch.int8, torch.float16, torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cropped = area_crop(features.to(dtype), regions, (14, 14), unflipped(1))
        assert cropped.dtype == torch.float32
        torch.testing.assert_close(cropped, torch.full((1, 1, 14, 14), 101.0), rtol=1e-6, atol=0)
