import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from sami.predict.photo import read_photo, rgb_pixels

PIXELS = draw_photo(0, height=20, width=30)


def saved(image: Image.Image, path, **options):
    image.save(path, **options)
    return read_photo(path)


def test_rgb(tmp_path):
    assert (saved(Image.fromarray(PIXELS), tmp_path / "a.png") == PIXELS).all()


def test_grey_and_palette(tmp_path):
    grey = Image.fromarray(PIXELS).convert("L")
    found = saved(grey, tmp_path / "a.png")
    assert found.shape == (20, 30, 3) and (found == np.asarray(grey)[..., None]).all()
    assert (saved(Image.fromarray(PIXELS).convert("P"), tmp_path / "b.png").shape) == (20, 30, 3)
    bits = saved(Image.fromarray(PIXELS[..., 0] > 128), tmp_path / "c.png")
    assert set(np.unique(bits)) == {0, 255}


def test_transparent_is_white(tmp_path):
    alpha = np.zeros((20, 30, 1), np.uint8)
    alpha[:, 15:] = 255
    found = saved(Image.fromarray(np.concatenate([PIXELS, alpha], 2)), tmp_path / "a.png")
    assert (found[:, :15] == 255).all() and (found[:, 15:] == PIXELS[:, 15:]).all()


def test_sixteen_bits(tmp_path):
    grey = PIXELS[..., 0].astype(np.uint16) * 257
    expected = PIXELS[..., :1].repeat(3, 2)
    assert (saved(Image.fromarray(grey), tmp_path / "a.png") == expected).all()
    assert (saved(Image.fromarray(grey.astype(np.int32)), tmp_path / "b.tif") == expected).all()
    assert (rgb_pixels(grey) == expected).all()


def test_cmyk(tmp_path):
    found = saved(Image.fromarray(PIXELS).convert("CMYK"), tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(found.astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera(tmp_path, orientation):
    """The tag says how to turn the stored pixels; all eight give the upright photo's corner colours."""
    corners = np.zeros((16, 24, 3), np.uint8)
    corners[:8, :12, 0] = 255
    undo = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](corners)))
    assert (saved(stored, tmp_path / "a.png", exif=exif) == corners).all()


def test_what_is_no_photo(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(PIXELS).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    data = bytearray((tmp_path / "whole.png").read_bytes())
    data[60:80] = bytes(20)
    (tmp_path / "damaged.png").write_bytes(data)
    Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    for file, message in {
        "text.jpg": "cannot be read as an image",
        "empty.png": "cannot be read as an image",
        "cut.jpg": "cannot be read as an image",
        "damaged.png": "cannot be read as an image",
        "absent.jpg": "no such file",
        "": "no such file",
        "float.tif": "floating-point",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_photo(tmp_path / file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit of 200 pixels"):
        read_photo(tmp_path / "whole.png")


def test_arrays():
    assert rgb_pixels(PIXELS) is not None and (rgb_pixels(PIXELS[..., ::-1], image_format="BGR") == PIXELS).all()
    opaque = np.concatenate([PIXELS[..., ::-1], np.full((20, 30, 1), 255, np.uint8)], 2)
    assert (rgb_pixels(opaque, image_format="BGR") == PIXELS).all()
    assert (rgb_pixels(PIXELS[..., 0]) == rgb_pixels(PIXELS[..., :1])).all()
    for image, message in (
        (PIXELS / 255, "pixels of float64: give uint8"),
        (PIXELS.transpose(2, 0, 1), r"image is \[3, 20, 30\]"),
        (np.zeros((0, 5, 3), np.uint8), r"image is \[0, 5, 3\]"),
        ("photo.jpg", "image is a str"),
    ):
        with pytest.raises(ValueError, match=message):
            rgb_pixels(image)
    with pytest.raises(ValueError, match="image_format='GBR'"):
        rgb_pixels(PIXELS, image_format="GBR")
