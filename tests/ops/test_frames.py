import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sami.ops.frames import longest_side_frame, stretch_frame


@pytest.mark.parametrize("fit", [longest_side_frame, stretch_frame])
@pytest.mark.parametrize("size", [(600, 800), (37, 20), (1, 1), (3, 20000)])
def test_points_keep_their_share_of_the_image(fit, size):
    frame = fit(size, 1024)
    share = torch.rand(5, 2)
    points = share * torch.tensor(size).flip(0)
    torch.testing.assert_close(frame.to_model(points), share * torch.tensor(frame.input_size).flip(0))


def test_sizes():
    assert longest_side_frame((600, 800), 1024).input_size == (768, 1024)
    assert longest_side_frame((3, 20000), 1024).input_size == (1, 1024)
    assert longest_side_frame((333, 500), 1024).input_size == (682, 1024)
    assert stretch_frame((600, 800), 512).input_size == (512, 512)


@pytest.mark.parametrize("size", [(60, 80), (300, 200), (1, 1)])
def test_longest_side_is_pillows_resize(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    frame = longest_side_frame(size, 128)
    H, W = frame.input_size
    expected = np.asarray(Image.fromarray(pixels).resize((W, H), Image.Resampling.BILINEAR))
    found = frame.resize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    difference = np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    padded = frame.pad(found.float())
    assert padded.shape == (1, 3, 128, 128)
    assert (padded[..., H:, :] == 0).all() and (padded[..., W:] == 0).all()
    assert (padded[..., :H, :W] == found).all()


def test_stretch_is_float_bilinear():
    image = torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8)
    found = stretch_frame((60, 80), 128).resize(image)
    torch.testing.assert_close(found, F.interpolate(image.float(), (128, 128), mode="bilinear"))


@pytest.mark.parametrize("fit", [longest_side_frame, stretch_frame])
@pytest.mark.parametrize("size", [(60, 80), (80, 60), (64, 64)])
def test_masks_come_back_to_where_they_were(fit, size):
    frame = fit(size, 256)
    Ho, Wo = size
    x0, y0, x1, y1 = 20, 30, 50, 55  # a box in the image
    low = frame.to_model(torch.tensor([[x0, y0], [x1, y1]], dtype=torch.float32)) / 4
    place = torch.arange(64) + 0.5
    inside = [(place > low[0, axis]) & (place < low[1, axis]) for axis in (0, 1)]
    low_res = torch.where(inside[1][:, None] & inside[0], 10.0, -10.0)
    mask = frame.masks_to_original(low_res[None, None])[0, 0] > 0
    assert mask.shape == (Ho, Wo)
    expected = torch.zeros(Ho, Wo, dtype=torch.bool)
    expected[y0:y1, x0:x1] = True
    assert (mask & expected).sum() / (mask | expected).sum() > 0.9


@pytest.mark.parametrize("fit", [longest_side_frame, stretch_frame])
def test_an_image_with_fewer_pixels_lies_in_the_same_place(fit):
    frame = fit((1500, 2247), 256)
    shrunk = frame.shrunk(1024)
    assert shrunk.original_size == (684, 1024) and shrunk.input_size == frame.input_size
    corners = [whole.to_model(torch.tensor(whole.original_size).flip(0).float()) for whole in (frame, shrunk)]
    torch.testing.assert_close(*corners)
    assert frame.shrunk(2247) == frame and shrunk.masks_to_original(torch.zeros(1, 1, 64, 64)).shape[2:] == (684, 1024)


def test_masks_at_once():
    assert stretch_frame((10, 20), 8).masks_at_once(1000) == 5
    assert stretch_frame((2, 3), 8).masks_at_once(128) == 2  # the square is the larger one
    assert stretch_frame((10, 20), 8).masks_at_once(1) == 1
