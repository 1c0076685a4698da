"""segment-anything's `ResizeLongestSide`: images, points and boxes into the model's frame.

B images   Ho Wo original pixels   H W pixels of the resized image   N points or boxes
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sami.ops.frames import ImageFrame, frame_of
from sami.predict.image import rgb_pixels


class ResizeImage:
    """What `SamPredictor.transform` is, with the methods of segment-anything's transform.

    A model that pads has the longest side of an image resized to its square's, as in segment-anything. One that
    stretches has both sides resized on their own, which for points and boxes means one factor for x and another for y.

    Args:
        target_length: pixels per side of the model's square.
        resize_mode: "pad" or "stretch", the model's.
    """

    def __init__(self, target_length: int, resize_mode: str = "pad") -> None:
        self.target_length, self.resize_mode = target_length, resize_mode

    def frame(self, original_size: Sequence[int]) -> ImageFrame:
        """Where an image of (Ho, Wo) pixels lies in the model's square."""
        Ho, Wo = original_size
        return frame_of((Ho, Wo), self.target_length, resize_mode=self.resize_mode)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """RGB uint8 [Ho, Wo, 3] -> [H, W, 3]: uint8, or float32 in 0 to 255 where it is stretched."""
        pixels = torch.from_numpy(rgb_pixels(image)).permute(2, 0, 1).unsqueeze(0)
        return self.apply_image_torch(pixels)[0].permute(1, 2, 0).contiguous().numpy()

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """[B, 3, Ho, Wo] in 0 to 255 -> [B, 3, H, W]. Float pixels are not rounded, which the model's own are.

        (segment-anything's takes B and 3 for the image's size, an error.)
        """
        return self.frame(image.shape[-2:]).resize(image)

    def apply_coords(self, coords: np.ndarray, original_size: Sequence[int]) -> np.ndarray:
        """[..., 2] (x, y) pixels of the image -> of the model, float64."""
        return self.frame(original_size).to_model(torch.from_numpy(np.asarray(coords, dtype=np.float64))).numpy()

    def apply_boxes(self, boxes: np.ndarray, original_size: Sequence[int]) -> np.ndarray:
        """[N, 4], or one box [4], xyxy pixels of the image -> [N, 4] of the model, float64."""
        return self.apply_coords(np.reshape(boxes, (-1, 2, 2)), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: Sequence[int]) -> Tensor:
        """[..., 2] (x, y) pixels of the image -> of the model, float32."""
        return self.frame(original_size).to_model(coords.float())

    def apply_boxes_torch(self, boxes: Tensor, original_size: Sequence[int]) -> Tensor:
        """[N, 4], or one box [4], xyxy pixels of the image -> [N, 4] of the model, float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)
