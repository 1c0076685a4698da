"""Read images: files, numpy arrays and Pillow's images as RGB uint8 pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

from sami.data.decode import BrokenImage, decode_image, to_rgb


def read_image(path: str | Path) -> np.ndarray:
    """RGB uint8 [Ho, Wo, 3] of an image file, see `sami.data.decode`.

    Raises:
        ValueError: no such file, no image, a damaged one, or more pixels than Pillow takes for an honest image.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return decode_image(path.read_bytes())
    except (BrokenImage, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def rgb_pixels(image: np.ndarray | Image.Image, *, image_format: str = "RGB") -> np.ndarray:
    """RGB uint8 [Ho, Wo, 3] of an array or an image of Pillow, as `to_rgb` converts a file's; it is not turned.

    Args:
        image: an image of Pillow, or uint8 or uint16 pixels [Ho, Wo], [Ho, Wo, 1], [Ho, Wo, 3] or [Ho, Wo, 4].
        image_format: "RGB" or "BGR", the order of an array's first three channels.

    Raises:
        ValueError: anything else.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format={image_format!r}: choose RGB or BGR")
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}: give a numpy array [H, W, 3] or an image of Pillow")
    pixels = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
    if pixels.dtype != np.uint8:
        raise ValueError(f"image has pixels of {pixels.dtype}: give uint8 in [0, 255], or uint16 in [0, 65535]")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"image is {list(image.shape)}: give [H, W], [H, W, 3] or [H, W, 4], channels last")
    if pixels.shape[2] == 1:
        return pixels.repeat(3, axis=2)
    if image_format == "BGR":
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if pixels.shape[2] == 4:
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(pixels))))
    return np.ascontiguousarray(pixels)
