import io

import numpy as np
import pytest
import torch
from conftest import draw_image, encode
from PIL import Image

from sami.data.crops import (
    RandomCrops,
    center_crop_box,
    crop_and_resize,
    denormalize,
    normalize,
    normalize_padded,
    resize_and_pad,
)
from sami.data.decode import BrokenImage, decode_image, image_size
from sami.ops.frames import longest_side_frame


def fit_longest(size: tuple[int, int], side: int) -> tuple[int, int]:
    return longest_side_frame(size, side).input_size


def pillow_crop(data: bytes, box: tuple[int, int, int, int], side: int) -> torch.Tensor:
    top, left, height, width = box
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    resized = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def test_crop_equals_pillow() -> None:
    data = encode(draw_image(0, height=120, width=160), quality=95)
    for box in ((0, 0, 120, 160), (13, 40, 77, 60), (5, 100, 10, 9)):
        ours, theirs = crop_and_resize(data, box, 64), pillow_crop(data, box, 64)
        assert ours.shape == (3, 64, 64) and ours.dtype == torch.uint8
        assert (ours.float() - theirs.float()).abs().mean() < 1


def test_scaled_decoding_keeps_the_frame() -> None:
    """A large image is decoded at a fraction of its size; the same box must still show the same part."""
    data = encode(draw_image(1, height=901, width=1203, grain=150), quality=95)
    for box in ((0, 0, 901, 1203), (200, 301, 650, 640)):
        ours, theirs = crop_and_resize(data, box, 64), pillow_crop(data, box, 64)
        assert decode_image(data, min_scale=128 / min(box[2:])).shape[0] < 901
        assert (
            ours.float() - theirs.float()
        ).abs().mean() < 2  # box edges fall between the pixels of the smaller picture


def test_flip_mirrors() -> None:
    data = encode(draw_image(2))
    plain, flipped = (crop_and_resize(data, (0, 0, 48, 64), 32, flip=flip) for flip in (False, True))
    assert torch.equal(plain.flip(-1), flipped) and not torch.equal(plain, flipped)


def test_one_pixel_and_a_thread_of_pixels() -> None:
    for height, width in ((1, 1), (1, 300), (300, 1)):
        data = encode(draw_image(3, height=height, width=width), "PNG")
        box = RandomCrops((0.2, 1), (0.75, 1.33), 0.5).draw_box(image_size(data), np.random.default_rng(0))
        assert crop_and_resize(data, box, 32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "data", [b"", b"not an image at all", encode(draw_image(4))[:600], encode(draw_image(4), "PNG")[:400]]
)
def test_broken_bytes_are_named_as_such(data: bytes) -> None:
    with pytest.raises(BrokenImage, match=r"Error|cannot|truncated"):
        crop_and_resize(data, (0, 0, 1, 1), 8)


def test_random_boxes_are_inside_and_spread() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        top, left, height, width = RandomCrops((0.2, 1.0), (3 / 4, 4 / 3), 0.5).draw_box((300, 400), rng)
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        assert 0.74 < width / height < 1.35
        areas.append(height * width / (300 * 400))
    assert min(areas) > 0.19 and max(areas) > 0.9 and abs(np.median(areas) - 0.55) < 0.08


def test_center_crop_box() -> None:
    assert center_crop_box((200, 400), 0.875) == (12, 112, 175, 175)
    top, left, side, _ = center_crop_box((256, 256), 0.875)
    assert (top, left, side) == (16, 16, 224)


def test_normalize_and_back() -> None:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normal = normalize(image)
    expected = (image[0, 1, 0, 0] / 255 - 0.456) / 0.224
    torch.testing.assert_close(normal[0, 1, 0, 0], expected)
    assert torch.equal(denormalize(normal), image)


SIZES = [(48, 64), (333, 500), (500, 333), (20, 31), (64, 64), (200, 200), (1, 300), (33, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_whole_images_equal_pillow(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    padded = resize_and_pad(encode(pixels, "PNG"), 64)
    assert padded.shape == (3, 64, 64) and padded.dtype == torch.uint8
    height, width = fit_longest(size, 64)
    resized = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    difference = padded[:, :height, :width].permute(1, 2, 0).int() - torch.from_numpy(resized).int()
    assert difference.abs().max() <= 1 and difference.float().abs().mean() < 0.01
    assert (padded[:, height:] == 0).all() and (padded[:, :, width:] == 0).all()


def test_padding_is_zero_after_normalising() -> None:
    images = [resize_and_pad(encode(draw_image(0, height=h, width=w), "PNG"), 64) for h, w in SIZES]
    image = torch.stack([*images, torch.zeros(3, 64, 64, dtype=torch.uint8)])  # the last image was broken
    normal = normalize_padded(image, [*SIZES, (0, 0)])
    for one, raw, size in zip(normal, images, SIZES, strict=False):
        height, width = fit_longest(size, 64)
        assert torch.equal(one[:, :height, :width], normalize(raw[None])[0, :, :height, :width])
        assert (one[:, height:] == 0).all() and (one[:, :, width:] == 0).all()
    assert (normal[-1] == 0).all()


@pytest.mark.parametrize("side", [64, 224, 1024])
def test_the_longest_side_is_rounded_as_sam_does(side: int) -> None:
    """`ResizeLongestSide.get_preprocess_shape` of segment-anything."""
    for old_h, old_w in np.random.default_rng(0).integers(1, 5000, (500, 2)).tolist():
        scale = side * 1.0 / max(old_h, old_w)
        expected = tuple(max(1, int(length * scale + 0.5)) for length in (old_h, old_w))
        assert fit_longest((old_h, old_w), side) == expected and max(expected) == side
    assert fit_longest((1, 5000), side)[0] == 1
    assert fit_longest((3, 8), 4) == (2, 4) and fit_longest((5, 8), 4) == (3, 4)  # halves go up, both times


def test_broken_whole_images_are_named_as_such() -> None:
    with pytest.raises(BrokenImage, match=r"Error|cannot|truncated"):
        resize_and_pad(encode(draw_image(4))[:600], 64)
