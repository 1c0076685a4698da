"""Image files to RGB pixels: the one reader of training, packing, caching, validation and prediction.

What a file becomes, whoever reads it:

- EXIF orientation is applied: the image is upright, as viewers show it. A damaged or unknown tag counts as upright.
- Transparency (RGBA, grey with alpha, a palette or a colour marked as transparent) is laid on white.
- Grey, palette and 1-bit images become RGB; of 16-bit grey the high 8 bits are kept. Wider integers and floating-point
  pixels have no known range and are refused.
- CMYK and YCCK become RGB as Pillow converts them, without the file's colour profile; so does every other colour space.
- Of an animation the first frame counts.

No torch in here: the processes of `sami.pack`, which import it, would wait for that.

H W pixels of the upright image
"""

import io
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

FORMATS = {  # Pillow's name of the content: the extensions of such files, the usual one first
    **{"JPEG": ("jpg", "jpeg"), "PNG": ("png",), "WEBP": ("webp",), "BMP": ("bmp",), "PPM": ("ppm",)},
    **{"TIFF": ("tif", "tiff"), "GIF": ("gif",)},
}
IMAGE_EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
JPEG_START = b"\xff\xd8"
ORIENTATION = 0x0112  # the EXIF tag


class BrokenImage(ValueError):
    """The bytes of one image cannot be used; the message says why."""


def decode_image(data: bytes, *, min_scale: float = 1.0, upright: bool = True) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an image file.

    Args:
        data: the file's bytes.
        min_scale: a JPEG may be decoded at a half, quarter or eighth of its size as long as both sides keep at least
            this fraction. Decoding is the limit of loading, and skipping frequencies is most of it on large images.
        upright: False for the raster as it is stored, which masks may have been drawn on.

    Raises:
        BrokenImage: not an image, cut short (a half-grey picture is not handed on as if it were whole), or of pixels
            without a known range.
    """
    (height, width), orientation = read_header(data)
    orientation = orientation if upright else 1
    if data[:2] == JPEG_START:
        fraction = min_scale if min_scale <= 0.5 else 0  # 0: as large as it is
        least = math.ceil(height * fraction), math.ceil(width * fraction)
        try:
            return turn(simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1]), orientation)
        except ValueError:
            pass  # CMYK and rare variants, which libjpeg-turbo refuses; Pillow says what is wrong with the rest
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return turn(np.asarray(to_rgb(picture)), orientation)
    except BrokenImage:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError, ...
        raise BrokenImage(reason(error)) from error


def image_size(data: bytes, *, upright: bool = True) -> tuple[int, int]:
    """(H, W) from the file's header, of the upright image or of the raster as it is stored.

    Raises:
        BrokenImage: no image header.
    """
    (height, width), orientation = read_header(data)
    return (width, height) if upright and orientation >= 5 else (height, width)


def read_header(data: bytes) -> tuple[tuple[int, int], int]:
    """(H, W) of the raster as it is stored, and the EXIF orientation, 1 (upright) to 8; no pixel is decoded.

    Raises:
        BrokenImage: no image header.
    """
    try:
        if data[:2] == JPEG_START:
            try:
                height, width, _, _ = simplejpeg.decode_jpeg_header(data)
                return (int(height), int(width)), find_orientation(jpeg_exif(data))
            except ValueError:
                pass  # as in `decode_image`
        with Image.open(io.BytesIO(data)) as picture:
            # a TIFF, whose tags are not in `info`, Pillow turns by itself: it counts as stored upright
            return (picture.height, picture.width), find_orientation(picture.info.get("exif", b""))
    except Exception as error:
        raise BrokenImage(reason(error)) from error


def jpeg_exif(data: bytes) -> bytes:
    """The EXIF block of a JPEG, empty without one: in a segment before the pixels, whose lengths are followed."""
    begin = 2
    while data[begin : begin + 1] == b"\xff" and data[begin + 1] != 0xDA:  # start of scan
        end = begin + 2 + int.from_bytes(data[begin + 2 : begin + 4])
        if data[begin + 1] == 0xE1 and data[begin + 4 : begin + 10] == b"Exif\0\0":
            return data[begin + 4 : end]
        begin = end
    return b""


def find_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block: 1, upright, where there is none, or the block is damaged.

    Read by hand: Pillow, which reads all tags, takes a twentieth of the time that decoding a small image takes.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for begin in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, begin)
            if tag == ORIENTATION:
                return value if value in range(1, 9) else 1
    except struct.error:  # cut short, or no EXIF at all
        pass
    return 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[h, w, 3] as stored -> [H, W, 3] upright, by the EXIF orientation (CIPA DC-008, 4.6.4)."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = (-1 if orientation in mirrored else 1 for mirrored in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB of Pillow's picture, by the rules above; it is not turned.

    Raises:
        BrokenImage: floating-point pixels, or integers above 16 bits.
    """
    if picture.mode == "F":
        raise BrokenImage("floating-point pixels have no known range: convert the image to 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16 bits; some files give them as 32. Pillow would clip them to white
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise BrokenImage("pixels above 16 bits have no known range: convert the image to 8 or 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def reason(error: Exception) -> str:
    """What a decoder said, without the address of the buffer it was given: the same each time."""
    return re.sub(" <_io.BytesIO object at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")


def list_images(root: Path) -> list[str]:
    """Paths below `root`, relative to it, of everything that is called like an image. Hidden files are left out."""
    found, folders = [], [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(path)
                elif entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                    found.append(path)
    return found
