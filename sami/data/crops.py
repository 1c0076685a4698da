"""Crops of an image, and the whole of it in a square: boxes, resizing, padding, mirroring, normalising.

S pixels per side of the view
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sami.data.decode import decode_image, image_size
from sami.ops.frames import longest_side_frame

PIXEL_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of pixels in [0, 1]; SAM's own are the same times 255
PIXEL_STD = (0.229, 0.224, 0.225)
CENTER = 0.875  # of the short side is what evaluation's crop keeps; 224/256 is the custom
TRANSFORM_VERSION = 2  # of the pixels of an image file's crops: kept targets belong to one. 2: upright, alpha on white


@dataclass(frozen=True)
class RandomCrops:
    """Crop boxes as torchvision's RandomResizedCrop draws them, and flips."""

    scale: tuple[float, float]  # least and most area. (0.2, 1) is MAE's; SAMI's paper only says "random resized crop"
    ratio: tuple[float, float]  # least and most aspect ratio
    flip: float  # probability of mirroring

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[tuple[int, int, int, int], bool]:
        """(top, left, height, width) in pixels of an image of `size` (H, W), and whether to mirror it."""
        return self.draw_box(size, rng), bool(rng.random() < self.flip)

    def draw_box(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Area and aspect ratio are drawn up to ten times until the box fits, else the largest centred box."""
        height, width = size
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


def center_crop_box(size: tuple[int, int], fraction: float) -> tuple[int, int, int, int]:
    """(top, left, height, width): the centred square with `fraction` of the short side."""
    height, width = size
    side = max(1, round(min(height, width) * fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def crop_and_resize(data: bytes, box: tuple[int, int, int, int], side: int, *, flip: bool = False) -> Tensor:
    """uint8 [3, S, S]: the box of the image, resized to side x side (bicubic, antialiased), mirrored if asked.

    Args:
        data: the file's bytes.
        box: (top, left, height, width) in pixels of the whole image.
        side: S.

    Raises:
        BrokenImage: see `decode_image`.
    """
    size = image_size(data)
    top, left, height, width = box
    # at least twice the pixels that are needed, so that the antialiasing of the resize does the last halving
    pixels = decode_image(data, min_scale=min(1.0, 2 * side / min(height, width)))  # [H', W', 3]
    scale = round(8 * pixels.shape[0] / size[0]) / 8  # exact: the decoder scales by eighths and rounds sides up
    y0, x0 = min(round(top * scale), pixels.shape[0] - 1), min(round(left * scale), pixels.shape[1] - 1)
    y1, x1 = max(y0 + 1, round((top + height) * scale)), max(x0 + 1, round((left + width) * scale))
    crop = torch.from_numpy(np.ascontiguousarray(pixels[y0:y1, x0:x1])).permute(2, 0, 1)  # [3, h, w], channels last
    if crop.shape[1:] != (side, side):
        # resizing bytes in channels-last order is the fast path of torch, and within 1/255 of Pillow
        crop = F.interpolate(crop.unsqueeze(0), size=(side, side), mode="bicubic", antialias=True)[0]
    return crop.flip(-1) if flip else crop


def resize_and_pad(data: bytes, side: int) -> Tensor:
    """uint8 [3, S, S]: the whole image, its longest side at S pixels, in the upper left corner, see `Frame`.

    SAM's preprocessing, but for the padding: it is black here and becomes zero in `normalize_padded`.

    Raises:
        BrokenImage: see `decode_image`.
    """
    pixels = torch.from_numpy(np.array(decode_image(data))).permute(2, 0, 1).unsqueeze(0)  # [1, 3, H, W], channels last
    height, width = pixels.shape[2:]
    frame = longest_side_frame((height, width), side)
    return frame.pad(frame.resize(pixels))[0]


@cache
def pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, 3, 1, 1]; made once, since copying them to a GPU would wait for it each time."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return mean, std


def normalize(image: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> float32, zero mean and unit variance over ImageNet."""
    mean, std = pixel_statistics(image.device)
    return image.float().div_(255).sub_(mean).div_(std)


def denormalize(image: Tensor) -> Tensor:
    """The inverse of `normalize`, rounded to uint8."""
    mean, std = pixel_statistics(image.device)
    return (image * std + mean).mul(255).round().clamp(0, 255).byte()


def normalize_padded(image: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """`normalize` of images from `resize_and_pad`, zero in their padding, as SAM pads after it has normalised.

    Args:
        image: uint8 [B, 3, S, S].
        sizes: (H, W) of each image; (0, 0) for an image that is not there.
    """
    image = normalize(image)
    for one, size in zip(image, sizes, strict=True):
        height, width = longest_side_frame(size, image.shape[-1]).input_size if any(size) else (0, 0)
        one[:, height:] = 0
        one[:, :, width:] = 0
    return image
