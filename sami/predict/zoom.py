"""Box prompts at full resolution: each box is segmented in a window around it, for small objects in large images.

The model's square shows an image of 4,000 pixels four times smaller, and of an object of 40 pixels ten. A window around
the box shows what the image has of it. The price is one pass of the image encoder for each box.

Q boxes   K candidate masks   Ho Wo original pixels
"""

import math
from collections.abc import Sequence

import numpy as np

from sami.models.sam import Sam
from sami.ops.frames import stretch_frame
from sami.ops.rle import Window
from sami.predict.check_prompts import as_floats, check_box
from sami.predict.image import rgb_pixels
from sami.predict.predictor import IMAGES_AT_ONCE, ImageLike, SamPredictor

ZOOM = 2.0  # sides of a window in longer sides of the box in it
MOST_ZOOM = 8  # a window's side is at least this part of the model's square: magnified further, pixels show no more


def predict_zoomed(
    model: Sam, image: ImageLike, boxes: Sequence, *, multimask_output: bool = True, image_format: str = "RGB"
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of each box, from a window around it: see `window_around`; nothing is found outside of that.

    Args:
        model: any segmenter.
        image: see `SamPredictor.set_image`.
        boxes: [Q, 4] xyxy pixels of the image; a list of such. Their masks take Q*K*Ho*Wo bytes: of hundreds in a
            large image ask for some at a time.
        multimask_output: K = 3 masks, for boxes that may mean several things, or K = 1.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        masks: [Q, K, Ho, Wo] bool.
        iou_predictions: [Q, K] float32.

    Raises:
        ValueError: see `rgb_pixels` and `check_box`, or `boxes` are of another shape.
    """
    pixels = rgb_pixels(image, image_format=image_format)
    Ho, Wo = size = pixels.shape[:2]
    corners = as_floats(boxes, "boxes")
    if corners.numel() and (corners.ndim != 2 or corners.shape[1] != 4):
        raise ValueError(f"boxes are {list(corners.shape)}: give [Q, 4], x0 y0 x1 y1 of each")
    whole, K = stretch_frame(size, model.image_size), 3 if multimask_output else 1
    inside = [np.clip(check_box(box, whole).numpy(), 0, (Wo, Ho, Wo, Ho)) for box in corners]
    windows = [window_around(box.tolist(), size, image_size=model.image_size) for box in inside]
    masks, ious = np.zeros((len(corners), K, Ho, Wo), dtype=bool), np.zeros((len(corners), K), dtype=np.float32)
    predictor = SamPredictor(model)
    for start in range(0, len(corners), IMAGES_AT_ONCE):
        rows = range(start, min(start + IMAGES_AT_ONCE, len(corners)))
        parts = [(slice(t, t + h), slice(left, left + w)) for t, left, h, w in (windows[row] for row in rows)]
        predictor.set_image_batch([pixels[part] for part in parts])
        asked = [(inside[row] - (windows[row][1], windows[row][0]) * 2)[None] for row in rows]
        found = predictor.predict_batch(box_batch=asked, multimask_output=multimask_output)
        for row, part, seen, confidence in zip(rows, parts, *found[:2], strict=True):
            masks[row][:, *part], ious[row] = seen[0], confidence[0]
    return masks, ious


def window_around(box: Sequence[float], size: tuple[int, int], *, image_size: int) -> Window:
    """A square part of an image around the middle of a box, moved, and then cut, where the image ends.

    Args:
        box: (x0, y0, x1, y1) pixels, inside the image.
        size: (H, W) of the image.
        image_size: pixels per side that the model sees: no window is made for more than `MOST_ZOOM` times the image's.
    """
    side = math.ceil(max(ZOOM * max(box[2] - box[0], box[3] - box[1]), image_size / MOST_ZOOM))
    height, width = (min(side, whole) for whole in size)
    top, left = (
        min(max(round((low + high - length) / 2), 0), whole - length)
        for low, high, length, whole in zip(box[1::-1], box[:1:-1], (height, width), size, strict=True)
    )
    return top, left, height, width
