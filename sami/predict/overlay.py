"""Masks, points and boxes drawn on an image.

Q objects   Ho Wo pixels of the image
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sami.ops.prompts import FOREGROUND

COLORS = ((30, 144, 255), (255, 140, 0), (186, 85, 211), (255, 215, 0), (0, 206, 209), (255, 105, 180), (154, 205, 50))
OPACITY = 0.5
INSIDE, OUTSIDE, EDGE = (0, 200, 0), (220, 0, 0), (255, 255, 255)  # of foreground and background points, and around


def draw_masks(
    image: np.ndarray,
    masks: np.ndarray,
    *,
    point_coords: Iterable[Sequence[float]] = (),
    point_labels: Iterable[int] = (),
    boxes: Sequence[Sequence[float]] = (),
) -> Image.Image:
    """A copy of the image with each mask in a colour of its own, outlined, and the prompts on top.

    Args:
        image: uint8 [Ho, Wo, 3].
        masks: [Q, Ho, Wo] bool; later ones cover earlier ones.
        point_coords: [P, 2] (x, y) pixels; green discs are foreground, red ones background.
        point_labels: [P].
        boxes: xyxy pixels, in the colour of the mask of the same number.
    """
    pixels = image.astype(np.float32)
    for number, mask in enumerate(masks):
        color = np.array(COLORS[number % len(COLORS)], dtype=np.float32)
        pixels[mask] = (1 - OPACITY) * pixels[mask] + OPACITY * color
        pixels[outline(mask)] = color
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    draw, thick = ImageDraw.Draw(drawn), max(round(max(drawn.size) / 400), 1)
    for number, box in enumerate(boxes):
        draw.rectangle(tuple(float(edge) for edge in box), outline=COLORS[number % len(COLORS)], width=thick)
    for (x, y), label in zip(point_coords, point_labels, strict=True):
        disc = (x - 3 * thick, y - 3 * thick, x + 3 * thick, y + 3 * thick)
        draw.ellipse(disc, fill=INSIDE if label == FOREGROUND else OUTSIDE, outline=EDGE, width=thick)
    return drawn


def outline(mask: np.ndarray) -> np.ndarray:
    """[Ho, Wo] bool -> its pixels that touch, above, below or beside them, one that is not in the mask."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
