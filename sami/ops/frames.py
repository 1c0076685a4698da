"""Resizing and padding of images, points and masks to the model's square input, and back.

Ho Wo original pixels   H W the image's pixels in the square   S the square's side   h w low-res mask
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageFrame:
    """Where an image lies in the model's square: its top left corner in that of the square.

    Args:
        original_size: (Ho, Wo).
        input_size: (H, W), what the image is resized to.
        image_size: S.
        stretch: both sides resized on their own, as EfficientSAM does; else the longest side fills the square (SAM).
    """

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_size: int
    stretch: bool

    def to_model(self, coords: Tensor) -> Tensor:
        """[..., 2] (x, y) pixels of the image -> of the square."""
        (Ho, Wo), (H, W) = self.original_size, self.input_size
        return coords * torch.tensor([W / Wo, H / Ho], dtype=coords.dtype, device=coords.device)

    def resize(self, image: Tensor) -> Tensor:
        """uint8 [B, 3, Ho, Wo] -> [B, 3, H, W]: uint8, or float in 0 to 255 where it is stretched.

        As the models were released. SAM resizes with Pillow, antialiased and rounded to whole values; torch's uint8
        kernel differs by 1 in one value of 400. EfficientSAM resizes float pixels, and does not smooth what it
        shrinks.
        """
        if self.stretch:
            return F.interpolate(image.float(), self.input_size, mode="bilinear")
        return F.interpolate(image, self.input_size, mode="bilinear", antialias=True)

    def shrunk(self, longest_side: int) -> "ImageFrame":
        """The frame of the same image with at most this many pixels on its longer side."""
        if max(self.original_size) <= longest_side:
            return self
        return replace(self, original_size=longest_side_frame(self.original_size, longest_side).input_size)

    def pad(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 3, S, S], zeros to the right and below."""
        (H, W), S = self.input_size, self.image_size
        return F.pad(image, (0, S - W, 0, S - H))

    def masks_to_original(self, low_res_masks: Tensor) -> Tensor:
        """[Q, K, h, w] logits of the square -> [Q, K, Ho, Wo] logits of the image.

        As released: SAM enlarges to the square, cuts the padding off, and resizes, bilinear both times; EfficientSAM
        resizes once, bicubic.
        """
        if self.stretch:
            return F.interpolate(low_res_masks, self.original_size, mode="bicubic")
        (H, W), S = self.input_size, self.image_size
        square = F.interpolate(low_res_masks, (S, S), mode="bilinear")
        return F.interpolate(square[..., :H, :W], self.original_size, mode="bilinear")

    def masks_at_once(self, num_pixels: int) -> int:
        """How many masks `masks_to_original` can be given, at least one, for no more than `num_pixels` on its way."""
        return max(num_pixels // max(math.prod(self.original_size), self.image_size**2), 1)


def frame_of(original_size: tuple[int, int], image_size: int, *, resize_mode: str) -> ImageFrame:
    """Where an image lies in the square of a model with this `resize_mode`, "pad" or "stretch"."""
    return (stretch_frame if resize_mode == "stretch" else longest_side_frame)(original_size, image_size)


def longest_side_frame(original_size: tuple[int, int], image_size: int) -> ImageFrame:
    """The image's longest side fills the square's; sides are rounded, and never to nothing."""
    Ho, Wo = original_size
    scale = image_size / max(Ho, Wo)
    H, W = (max(int(side * scale + 0.5), 1) for side in (Ho, Wo))
    return ImageFrame((Ho, Wo), (H, W), image_size, stretch=False)


def stretch_frame(original_size: tuple[int, int], image_size: int) -> ImageFrame:
    """Stretch: both sides of the image are resized on their own, so that they fill the square."""
    Ho, Wo = original_size
    return ImageFrame((Ho, Wo), (image_size, image_size), image_size, stretch=True)
