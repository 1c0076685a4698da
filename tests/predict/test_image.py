import numpy as np
import pytest
from conftest import draw_image
from PIL import Image

from sami.predict.image import read_image, rgb_pixels

PIXELS = draw_image(0, height=20, width=30)


def test_what_is_no_image(tmp_path, monkeypatch):
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
            read_image(tmp_path / file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit of 200 pixels"):
        read_image(tmp_path / "whole.png")


def test_arrays():
    assert rgb_pixels(PIXELS) is not None and (rgb_pixels(PIXELS[..., ::-1], image_format="BGR") == PIXELS).all()
    opaque = np.concatenate([PIXELS[..., ::-1], np.full((20, 30, 1), 255, np.uint8)], 2)
    assert (rgb_pixels(opaque, image_format="BGR") == PIXELS).all()
    assert (rgb_pixels(PIXELS[..., 0].astype(np.uint16) * 257) == rgb_pixels(PIXELS[..., 0])).all()
    assert (rgb_pixels(PIXELS[..., 0]) == rgb_pixels(PIXELS[..., :1])).all()
    for image, message in (
        (PIXELS / 255, "pixels of float64: give uint8"),
        (PIXELS.transpose(2, 0, 1), r"image is \[3, 20, 30\]"),
        (np.zeros((0, 5, 3), np.uint8), r"image is \[0, 5, 3\]"),
        ("image.jpg", "image is a str"),
    ):
        with pytest.raises(ValueError, match=message):
            rgb_pixels(image)
    with pytest.raises(ValueError, match="image_format='GBR'"):
        rgb_pixels(PIXELS, image_format="GBR")
