"""The built-in sample: scenes drawn by code, with exact masks, as shards like those of ImageNet and SA-1B.

Three to eight textured objects overlap on a textured background. What lies in front hides what lies behind, so the
visible mask of every object is known to the pixel. The class of a scene is the kind of its largest object, its shape
and the family of its texture; colours are drawn independently of both. A scene is a function of (seed, index) alone.

H W pixels   Q objects   h w pixels of an object's window. While drawing, colours come first: numpy likes long rows
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import PCG64, Generator

SHAPES = ("ellipse", "rectangle", "star", "blob")
FAMILIES = {"stripes": ("straight", "wavy"), "grid": ("checks", "dots"), "smooth": ("cloud", "ramp")}
CLASSES = tuple(f"{shape}, {family}" for shape in SHAPES for family in FAMILIES)

FIRST_VAL_INDEX = 1_000_000_000  # indices below are for training
MIN_AREA = 64  # visible pixels of an annotation
MIN_LARGEST = 0.1  # visible fraction of the image the largest object keeps
SHADOW = 6  # pixels


class Scene(NamedTuple):
    """An image and what is visible in it."""

    image: ndarray  # [H, W, 3] uint8 RGB
    masks: ndarray  # [Q, H, W] bool, disjoint: the visible pixels of each object, from back to front
    label: int  # the position in CLASSES of the largest object's kind


class _Object(NamedTuple):
    window: tuple[slice, slice]  # rows and columns of the image it may touch
    outline: ndarray  # [h, w] about the distance to its outline in pixels, negative inside
    colour: ndarray  # [3, h, w] in [0, 1]
    kind: int


def draw_scene(seed: int, index: int, *, size: int = 256) -> Scene:
    """The scene of this number, `size` x `size` pixels.

    Args:
        index: training scenes count from 0, validation scenes from FIRST_VAL_INDEX.

    Raises:
        ValueError: a negative or too large number, or a size below 64 pixels.
    """
    if not 0 <= seed < 2**32 or not 0 <= index < 2**32:
        raise ValueError(f"seed={seed}, index={index}: give numbers from 0 to {2**32 - 1}")
    if size < 64:
        raise ValueError(f"size={size} pixels is too small for eight objects: give at least 64")
    rng = Generator(PCG64((seed, index)))
    clouds = _clouds(rng, size)
    radii = [rng.uniform(0.24, 0.34), *rng.uniform(0.05, 0.14, rng.integers(2, 8)).tolist()]  # of the side
    objects = [_draw_object(rng, clouds, radius * size) for radius in radii]
    depth = rng.permutation(len(objects))
    owner = _owners(objects, depth, size)
    if (owner == 0).sum() < MIN_LARGEST * size**2:  # hidden by the others: bring it to the front
        depth = np.append(depth[depth != 0], 0)
        owner = _owners(objects, depth, size)
    image = _draw_background(rng, clouds)
    for number in depth:
        _paint(image, objects[number])
    areas = np.bincount(owner.ravel() + 1, minlength=len(objects) + 1)[1:]
    masks = np.stack([owner == number for number in depth if areas[number] >= MIN_AREA])
    return Scene(_photograph(rng, image), masks, objects[areas.argmax()].kind)


def _draw_object(rng: Generator, clouds: ndarray, radius: float) -> _Object:
    """An object of any kind, about the size of a disc of this radius in pixels that lies inside the image."""
    size, kind = len(clouds), int(rng.integers(len(CLASSES)))
    shape, family = SHAPES[kind // len(FAMILIES)], list(FAMILIES)[kind % len(FAMILIES)]
    y, x = rng.uniform(radius, size - radius, 2)
    reach = 1.5 * radius + SHADOW
    rows, columns = (slice(max(0, int(c - reach)), min(size, int(c + reach) + 1)) for c in (y, x))
    offsets = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(y)
    across = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(x)
    outline = _outline(rng, shape, radius, *_rotate(rng, across, offsets))
    u, v = _rotate(rng, across, offsets)
    weight = _texture(rng, FAMILIES[family][rng.integers(2)], radius, u, v, clouds)
    shading = 1 + rng.uniform(-0.25, 0.25) / radius * u + rng.uniform(-0.25, 0.25) / radius * v  # lit from one side
    return _Object((rows, columns), outline, _mix_colours(rng, weight) * shading, kind)


def _outline(rng: Generator, shape: str, radius: float, u: ndarray, v: ndarray) -> ndarray:
    """[h, w] negative inside; u, v: [h, w] pixels from the centre, along the object's own axes."""
    stretch = rng.uniform(1, 1.35)
    if shape == "ellipse":
        return np.hypot(u / stretch, v * stretch) - radius
    if shape == "rectangle":
        half = radius * math.sqrt(math.pi) / 2  # of the square with the disc's area
        return np.maximum(abs(u) - half * stretch, abs(v) - half / stretch)
    angle = np.arctan2(v, u)
    if shape == "star":
        turn = angle * np.float32(rng.integers(4, 8) / (2 * math.pi))
        wave = rng.uniform(0.25, 0.4) * (4 * abs(turn - np.floor(turn) - 0.5) - 1)
    else:
        wave = sum(rng.uniform(0.07, 0.15) * np.cos(m * angle + np.float32(rng.uniform(0, 6.3))) for m in (2, 3, 4))
    return np.hypot(u, v) - radius * (1 + wave)


def _texture(rng: Generator, texture: str, radius: float, u: ndarray, v: ndarray, clouds: ndarray) -> ndarray:
    """[h, w] in [0, 1]: how much of the second colour lies where; u, v as in `_outline`."""
    k = np.float32(2 * math.pi / max(5.0, rng.uniform(0.25, 0.6) * radius))  # periods of 5 pixels survive JPEG
    if texture == "straight":
        return _contrast(np.sin(k * u))
    if texture == "wavy":
        return _contrast(np.sin(k * u + 2 * np.sin(k / 2 * v)))
    if texture == "checks":
        return _contrast(2 * np.sin(k * u) * np.sin(k * v))
    if texture == "dots":
        return _contrast(np.cos(k * u) + np.cos(k * v) - rng.uniform(0.5, 1))
    if texture == "ramp":
        return np.clip(0.5 + u * np.float32(0.5 / radius), 0, 1)
    height, width = u.shape  # "cloud": a piece of the scene's clouds from another place than the object's own
    top, left = rng.integers(0, [len(clouds) - height + 1, len(clouds) - width + 1])
    return _contrast(clouds.T[top : top + height, left : left + width] * 0.4)


def _draw_background(rng: Generator, clouds: ndarray) -> ndarray:
    position = np.arange(len(clouds), dtype=np.float32) - len(clouds) / 2
    axes = _rotate(rng, position, position[:, None])
    texture = rng.choice(sum(FAMILIES.values(), ()))
    pattern = _texture(rng, texture, len(clouds) * rng.uniform(0.1, 0.6), *axes, clouds)
    smooth = 0.5 + 0.3 * clouds
    return _mix_colours(rng, np.clip(smooth + rng.uniform(0, 0.4) * (pattern - smooth), 0, 1))


def _paint(image: ndarray, thing: _Object) -> None:
    """Lay the object over the image [3, H, W], in place: a soft shadow, then the object with a smooth edge."""
    part = image[:, *thing.window]
    part *= np.clip(0.7 + 0.3 / SHADOW * thing.outline, 0.7, 1)
    part += np.clip(0.5 - thing.outline, 0, 1) * (thing.colour - part)


def _owners(objects: list[_Object], depth: ndarray, size: int) -> ndarray:
    """[H, W] int: the number of the object seen at each pixel, -1 where it is the background."""
    owner = np.full((size, size), -1, dtype=np.int8)
    for number in depth:
        owner[objects[number].window][objects[number].outline < 0] = number
    return owner


def _photograph(rng: Generator, image: ndarray) -> ndarray:
    """[3, H, W] in [0, 1] -> [H, W, 3] uint8: uneven light and the noise of a sensor."""
    ramp = np.linspace(-1, 1, image.shape[-1])
    vertical, horizontal = (1 + rng.uniform(-0.25, 0.25, (2, 1)) * ramp).astype(np.float32)
    noise = rng.standard_normal(image.shape[1:], dtype=np.float32) * np.float32(rng.uniform(0.01, 0.03))
    pixels = np.clip((image * (vertical[:, None] * horizontal) + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _mix_colours(rng: Generator, weight: ndarray) -> ndarray:
    """[h, w] -> [3, h, w]: two colours, one lighter than the other so that a texture is seen without colour too."""
    dark = rng.uniform(0.05, 0.6)
    lightness = np.array([dark, dark + rng.uniform(0.2, 0.4)])[rng.permutation(2), None]
    first, second = np.clip(lightness + rng.normal(0, 0.1, (2, 3)), 0, 1).astype(np.float32)[..., None, None]
    return first + weight * (second - first)


def _clouds(rng: Generator, size: int) -> ndarray:
    """[H, W] of mean 0 and deviation 1: amplitudes fall as 1/frequency, as they do in photographs."""
    clouds = np.zeros((size, size), dtype=np.float32)
    for cells in (3, 6, 12, 24, 48):
        spread = _interpolation(size, cells)
        clouds += spread @ rng.standard_normal((cells, cells), dtype=np.float32) @ spread.T / np.float32(cells)
    return (clouds - clouds.mean()) / clouds.std()


@lru_cache
def _interpolation(size: int, cells: int) -> ndarray:
    """[size, cells]: the weights that draw `cells` values out to `size` pixels."""
    distance = abs(np.linspace(0, cells - 1, size)[:, None] - np.arange(cells))
    return np.where(distance < 1, 0.5 + 0.5 * np.cos(math.pi * distance), 0).astype(np.float32)


def _rotate(rng: Generator, x: ndarray, y: ndarray) -> tuple[ndarray, ndarray]:
    """[w], [h, 1] -> two [h, w]: the coordinates along axes turned by a random angle."""
    angle = rng.uniform(0, 2 * math.pi)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _contrast(wave: ndarray) -> ndarray:
    """[-1, 1] -> [0, 1] with steep flanks."""
    return np.clip(0.5 + 1.25 * wave, 0, 1)
