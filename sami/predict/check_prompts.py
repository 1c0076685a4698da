"""Points, boxes and masks given as prompts, checked and brought into the model's frame.

Q prompts (objects) per image   P points per prompt   h w low-res mask
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sami.ops.frames import ImageFrame
from sami.ops.prompts import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, PAD_LABEL, TOP_LEFT


class Prompt(NamedTuple):
    """One object's prompt in the model's frame: [P, 2] (x, y), [P] labels, [h, w] logits or None."""

    coords: Tensor
    labels: Tensor
    mask: Tensor | None


def read_prompt(
    frame: ImageFrame,
    point_coords: np.ndarray | None,
    point_labels: np.ndarray | None,
    box: np.ndarray | None,
    mask_input: np.ndarray | None,
    *,
    takes_background: bool,
) -> Prompt:
    """Points and box of one object in pixels of the image -> of the model.

    Args:
        point_coords: [P, 2] (x, y).
        point_labels: [P], 1 foreground, 0 background, -1 none: such a point counts for nothing, wherever it is.
        box: [4] xyxy.
        mask_input: [1, h, w] or [h, w] logits.
        takes_background: whether the model knows background points.

    Raises:
        ValueError: points without labels or labels without points, shapes that do not fit, other labels, a point
            outside the image, a box without area or beside the image, or nothing at all.
    """
    if (point_coords is None) != (point_labels is None):
        given, missing = ("labels", "coords") if point_coords is None else ("coords", "labels")
        raise ValueError(f"point_{given} come without point_{missing}: give both, one label for each point")
    if point_coords is None and box is None and mask_input is None:
        raise ValueError("no prompt: give point_coords and point_labels, a box, or mask_input")
    coords, labels = [], []
    if point_coords is not None and point_labels is not None:
        coords.append(check_points(point_coords))
        labels.append(check_labels(point_labels, len(coords[0]), takes_background=takes_background))
        check_inside(coords[0][labels[0] != PAD_LABEL], frame)
    if box is not None:
        coords.append(check_box(box, frame).view(2, 2))
        labels.append(torch.tensor([TOP_LEFT, BOTTOM_RIGHT]))
    mask = None if mask_input is None else as_floats(mask_input, "mask_input")
    if mask is not None and mask.ndim == 3 and len(mask) == 1:
        mask = mask[0]
    if mask is not None and mask.ndim != 2:
        raise ValueError(f"mask_input is {list(mask.shape)}: give [1, h, w] of the low_res_masks of an earlier call")
    points = torch.cat(coords) if coords else torch.zeros(0, 2)
    return Prompt(frame.to_model(points), torch.cat(labels) if labels else torch.zeros(0).long(), mask)


def each_object(num_images: int, *batches: Sequence | None) -> list[list[list]]:
    """Per image and object its points, labels, box and mask prompt, out of the arguments of `predict_batch`."""
    for name, batch in zip(("point_coords", "point_labels", "box", "mask_input"), batches, strict=True):
        if batch is not None and len(batch) != num_images:
            raise ValueError(f"{name}_batch has {len(batch)} entries for {num_images} images")
    objects = []
    for image in range(num_images):
        given = [None if batch is None else batch[image] for batch in batches]
        counts = {len(entry) for entry in given if entry is not None}
        if len(counts) > 1:
            raise ValueError(f"image {image}: points, labels, boxes and masks are for {sorted(counts)} objects")
        rows = range(max(counts, default=0))
        objects.append([[None if entry is None else entry[row] for entry in given] for row in rows])
    return objects


def check_points(point_coords: np.ndarray) -> Tensor:
    """[P, 2] float; see `read_prompt`."""
    points = as_floats(point_coords, "point_coords")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"point_coords is {list(points.shape)}: give [P, 2], (x, y) of each point")
    return points


def check_inside(points: Tensor, frame: ImageFrame) -> None:
    """[P, 2]; see `read_prompt`."""
    Ho, Wo = frame.original_size
    for x, y in points.tolist():
        if not (0 <= x <= Wo and 0 <= y <= Ho):
            raise ValueError(f"point ({x:g}, {y:g}) is outside the image, which is {Wo} wide and {Ho} high")


def check_labels(point_labels: np.ndarray, num_points: int, *, takes_background: bool) -> Tensor:
    """[P] int64; see `read_prompt`."""
    labels = as_floats(point_labels, "point_labels")
    if labels.shape != (num_points,):
        raise ValueError(f"point_labels is {list(labels.shape)} for {num_points} points: give one label for each point")
    for label in labels.tolist():
        if label not in (FOREGROUND, BACKGROUND, PAD_LABEL):
            known = f"{FOREGROUND} for foreground, {BACKGROUND} for background, {PAD_LABEL} for none"
            raise ValueError(f"point label {label:g}: give {known}")
    if not takes_background and (labels == BACKGROUND).any():
        raise ValueError("this model was trained without background points: leave them out, or use another model")
    return labels.long()


def check_box(box: np.ndarray | Tensor, frame: ImageFrame) -> Tensor:
    """[4] float; see `read_prompt`."""
    corners = as_floats(box, "box")
    if corners.shape == (1, 4):
        corners = corners[0]
    if corners.shape != (4,):
        raise ValueError(f"box is {list(corners.shape)}: give one box [4], x0 y0 x1 y1; several go to predict_batch")
    x0, y0, x1, y1 = corners.tolist()
    Ho, Wo = frame.original_size
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) has no area: give x0 y0 x1 y1 with x0 < x1 and y0 < y1")
    if x0 >= Wo or y0 >= Ho or x1 <= 0 or y1 <= 0:
        raise ValueError(f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is outside the image, {Wo} wide and {Ho} high")
    return corners


def as_floats(values: object, name: str) -> Tensor:
    """A float32 tensor on the CPU; see `read_prompt`."""
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return torch.from_numpy(array.copy())


def stack_prompts(prompts: Sequence[Sequence[Prompt]], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """B images x Q prompts -> point_coords [B, Q, P, 2], point_labels [B, Q, P], mask_input [B, Q, h, w] or None."""
    flat = [prompt for of_image in prompts for prompt in of_image]
    shape, P = (len(prompts), len(prompts[0])), max((len(prompt.labels) for prompt in flat), default=0)
    coords, labels = torch.zeros(len(flat), P, 2), torch.full((len(flat), P), PAD_LABEL)
    for row, prompt in enumerate(flat):
        coords[row, : len(prompt.labels)], labels[row, : len(prompt.labels)] = prompt.coords, prompt.labels
    masks = [prompt.mask for prompt in flat if prompt.mask is not None]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError("the mask prompts have different sizes: give those of one model")
    if 0 < len(masks) < len(flat):
        raise ValueError("mask prompts for some objects of an image and not for others: ask for them in two calls")
    mask_input = torch.stack(masks).unflatten(0, shape).to(device) if masks else None
    return coords.unflatten(0, shape).to(device), labels.unflatten(0, shape).to(device), mask_input
