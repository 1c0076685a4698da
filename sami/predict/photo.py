"""A person's photo, in whatever form it comes, as RGB pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def read_photo(path: str | Path) -> np.ndarray:
    """RGB uint8 [Ho, Wo, 3] of an image file, upright: the camera's orientation tag is obeyed.

    Raises:
        ValueError: no such file, no image, a damaged one, or more pixels than Pillow takes for an honest photo.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with Image.open(path) as photo:
            photo.load()
            return to_rgb(ImageOps.exif_transpose(photo))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be opened safely: {error}. Make it smaller first") from error
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow raises for damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error


def to_rgb(image: np.ndarray | Image.Image, *, image_format: str = "RGB") -> np.ndarray:
    """Grey, RGBA, CMYK, palette and 16-bit images as RGB uint8 [Ho, Wo, 3]; what is transparent becomes white.

    Args:
        image: an image of Pillow, or uint8 or uint16 pixels [Ho, Wo], [Ho, Wo, 1], [Ho, Wo, 3] or [Ho, Wo, 4].
        image_format: "RGB" or "BGR", the order of an array's first three channels.

    Raises:
        ValueError: anything else.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format={image_format!r}: choose RGB or BGR")
    pixels = pillow_pixels(image) if isinstance(image, Image.Image) else image
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}: give a numpy array [H, W, 3] or an image of Pillow")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"image has pixels of {pixels.dtype}: give uint8 in [0, 255], or uint16 in [0, 65535]")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"image is {list(image.shape)}: give [H, W], [H, W, 3] or [H, W, 4], channels last")
    if pixels.shape[2] == 1:
        return np.ascontiguousarray(pixels.repeat(3, axis=2))
    if image_format == "BGR":
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint32)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """uint8 or uint16, one, three or four channels."""
    if image.mode.startswith("I"):  # 16 bits; some files give them as 32
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("the image has grey values beyond 16 bits: give it as 8 or 16 bits per channel")
        return pixels.astype(np.uint16)
    if image.mode == "F":
        raise ValueError("the image has floating-point pixels: give it as 8 or 16 bits per channel")
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))
