import math

import numpy as np
import pytest
import torch

from sami.models.pixel_teachers import HogTeacher, PixelTeacher


def random_image(H: int = 224, W: int = 224, B: int = 1) -> torch.Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(0))


def test_pixels_against_numpy():
    image = random_image(B=2)
    target = PixelTeacher()({"image": image}).numpy()
    for b, row, column in [(0, 0, 0), (1, 3, 11), (1, 13, 13)]:
        patch = image[b, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].numpy().transpose(1, 2, 0)
        expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(target[b, row * 14 + column], expected.ravel(), rtol=0, atol=1e-5)


def slow_hog(image: np.ndarray, num_bins: int, cell: int) -> np.ndarray:
    """[3, H, W] -> [H/cell, W/cell, 3, bins], one pixel and one bin at a time."""
    C, H, W = image.shape
    histograms = np.zeros((H // cell, W // cell, C, num_bins))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    width = 180 / num_bins
    for c, y, x in np.ndindex(C, H, W):
        dx, dy = padded[c, y + 1, x + 2] - padded[c, y + 1, x], padded[c, y + 2, x + 1] - padded[c, y, x + 1]
        angle = math.degrees(math.atan2(dy, dx)) % 180
        for b in range(num_bins):
            distance = abs(angle - (b + 0.5) * width)
            share = max(0.0, 1 - min(distance, 180 - distance) / width)
            histograms[y // cell, x // cell, c, b] += math.hypot(dx, dy) * share
    return histograms / np.linalg.norm(histograms, axis=-1, keepdims=True)


@pytest.mark.parametrize(("num_bins", "cell"), [(9, 8), (4, 16), (9, 4)])
def test_hog_against_loops(num_bins, cell):
    image = random_image(32, 48)
    image[0, 1, :16] *= torch.arange(48) % 2  # strictly vertical edges too
    target = HogTeacher(16, num_bins, cell)({"image": image})[0].numpy()
    cells, side = slow_hog(image[0].double().numpy(), num_bins, cell), 16 // cell
    for token, (row, column) in enumerate(np.ndindex(2, 3)):
        expected = cells[row * side : (row + 1) * side, column * side : (column + 1) * side].ravel()
        np.testing.assert_allclose(target[token], expected, rtol=0, atol=1e-4)


def test_hog_invariances():
    teacher, image = HogTeacher(), random_image()
    target = teacher({"image": image})
    scale, shift = torch.tensor([0.2, 3.0, 1.5]).reshape(3, 1, 1), torch.tensor([1.0, -2.0, 0.5]).reshape(3, 1, 1)
    torch.testing.assert_close(teacher({"image": image * scale + shift}), target, rtol=0, atol=1e-4)
    torch.testing.assert_close(teacher({"image": -image}), target, rtol=0, atol=1e-4)  # orientation has no sign
    mirrored = teacher({"image": image.flip(-1)}).reshape(14, 14, 2, 2, 3, 9)
    back = mirrored.flip(1, 3, 5).reshape(1, 196, 108)  # columns of patches, of cells, and 180 degrees less the angle
    torch.testing.assert_close(back, target, rtol=0, atol=1e-4)


def test_hog_of_flat_and_striped_images():
    teacher = HogTeacher()
    assert teacher.width == 108
    assert (teacher({"image": torch.full((1, 3, 224, 224), 0.7)}) == 0).all()
    stripes = (torch.arange(224) % 8 / 8).expand(1, 3, 224, 224)  # gradients along x: 0 degrees, between bins 8 and 0
    expected = torch.zeros(9)
    expected[[0, 8]] = 0.5**0.5
    torch.testing.assert_close(teacher({"image": stripes}), expected.repeat(12).expand(1, 196, 108))


def test_hog_cells_must_fill_a_patch():
    with pytest.raises(ValueError, match=r"patch_size=16.*cell_size=6"):
        HogTeacher(cell_size=6)
