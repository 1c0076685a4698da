"""Prompts made from masks: clicks and boxes, each a function of a mask and of uniform numbers that are handed in.

Clicks and boxes are both points with labels. A click is the (x, y) of a pixel; the corners of a box are edges, so that
the box of the single pixel in column 3, row 5 is (3, 5), (4, 6). All are in the frame of the masks; `scale_prompts`
brings them into a finer one.

B images   Q prompts (objects) per image   P points per prompt   H W pixels of the masks
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sami.ops.boxes import mask_to_box
from sami.ops.masks import innermost_pixel

FOREGROUND, BACKGROUND = 1, 0
TOP_LEFT, BOTTOM_RIGHT = 2, 3
PADDING = -1
DISC = 1 / 12  # of the longer side: about the best radius of a fixed disc, see `sami.metrics.mask_iou`
ROUNDNESS = 2.5  # 2 is an ellipse, more is nearer to the box
SEEN_SIDE = 48  # cells of a box, twelve image tokens, from which on what a network adds to its drawing counts in full

# Which prompts a model was trained to answer with several candidates: all (EfficientSAM), a click or a box without
# anything else, which may mean several things (SAM), or a lone click.
SEVERAL_FOR = ("any", "lone", "click")

Prompts = tuple[Tensor, Tensor]  # point_coords [B, Q, P, 2] (x, y) pixels, point_labels [B, Q, P]


def sample_pixels(regions: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One pixel of each region, all with the same chance.

    Args:
        regions: [B, Q, H, W] bool.
        noise: [B, Q, P] uniform in [0, 1): noise * area is the number of the pixel, counted row by row.

    Returns:
        [B, Q, P, 2] (x, y), and [B, Q] bool, whether the region holds any pixel.
    """
    count = regions.flatten(2).cumsum(dim=-1, dtype=torch.int32)  # [B, Q, H*W]
    area = count[..., -1:]
    wanted = torch.minimum((noise.double() * area).floor().int() + 1, area)
    index = torch.searchsorted(count, wanted).clamp(max=count.shape[-1] - 1)  # [B, Q, P]
    return torch.stack([index % regions.shape[-1], index // regions.shape[-1]], dim=-1).float(), area[..., 0] > 0


def uniform_clicks(masks: Tensor, noise: Tensor) -> Prompts:
    """P foreground clicks anywhere in the mask, as in EfficientSAM's evaluation (arXiv:2312.00863, Sec. 4.2).

    Args:
        masks: [B, Q, H, W] bool. An empty mask gets padding.
        noise: [B, Q, P] uniform in [0, 1).
    """
    coords, found = sample_pixels(masks, noise)
    return coords, torch.where(found, FOREGROUND, PADDING).unsqueeze(-1).expand(coords.shape[:-1])


def central_click(masks: Tensor) -> Prompts:
    """One foreground click on the pixel farthest from the edge of the mask (arXiv:2304.02643, App. D.1)."""
    coords, depth = innermost_pixel(masks)
    return coords.unsqueeze(2), torch.where(depth > 0, FOREGROUND, PADDING).unsqueeze(-1)


def random_correction(prediction: Tensor, masks: Tensor, noise: Tensor) -> Prompts:
    """One click anywhere in the error region, as SAM is trained with (arXiv:2304.02643, App. A).

    Args:
        prediction, masks: [B, Q, H, W] bool.
        noise: [B, Q] uniform in [0, 1).

    Returns:
        A foreground click where the mask was missed, a background click where it was exceeded, padding where the
        prediction is the mask.
    """
    coords, found = sample_pixels(prediction ^ masks, noise.unsqueeze(-1))  # [B, Q, 1, 2], [B, Q]
    x, y = coords.long().unbind(-1)  # [B, Q, 1]
    missed = masks.flatten(2).gather(2, y * masks.shape[-1] + x)
    labels = torch.where(missed, FOREGROUND, BACKGROUND)
    return coords, torch.where(found.unsqueeze(-1), labels, PADDING)


def central_correction(prediction: Tensor, masks: Tensor) -> Prompts:
    """One click on the innermost pixel of the error, as SAM is evaluated with (arXiv:2304.02643, App. D.1).

    What was missed and what is too much are two regions; the deeper one is clicked. Arguments and result as of
    `random_correction`.
    """
    missed, missed_depth = innermost_pixel(masks & ~prediction)
    excess, excess_depth = innermost_pixel(prediction & ~masks)
    more = missed_depth >= excess_depth
    coords = torch.where(more.unsqueeze(-1), missed, excess)
    labels = torch.where(more, FOREGROUND, BACKGROUND)
    found = torch.maximum(missed_depth, excess_depth) > 0
    return coords.unsqueeze(2), torch.where(found, labels, PADDING).unsqueeze(-1)


def tight_box(masks: Tensor) -> Prompts:
    """The corners of the tightest box around each mask: [B, Q, 2, 2]; padding for an empty mask."""
    boxes = mask_to_box(masks)
    labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=masks.device).expand(*boxes.shape[:2], 2)
    return boxes.unflatten(-1, (2, 2)), torch.where(masks.flatten(2).any(-1, keepdim=True), labels, PADDING)


def noisy_box(
    masks: Tensor, noise: Tensor, *, boxes: Tensor | None = None, std: float = 0.1, max_noise: float = 20.0
) -> Prompts:
    """The corners of the tightest box, moved at random as SAM is trained with (arXiv:2304.02643, App. A).

    Args:
        masks: [B, Q, H, W] bool. An empty mask gets padding.
        noise: [B, Q, 4] uniform in [0, 1), one for each coordinate.
        boxes: [B, Q, 4] where it is known better than the masks' pixels say; None: theirs.
        std: of the normal displacement, as a fraction of the box's side.
        max_noise: bound of the displacement, in pixels of the masks' frame. SAM's 20 are pixels of 1024.

    Returns:
        Corners inside the image, never swapped: 4.75 standard deviations are the most that is drawn.
    """
    coords, labels = tight_box(masks)
    coords = coords if boxes is None else boxes.unflatten(-1, (2, 2))
    side = (coords[..., 1, :] - coords[..., 0, :]).unsqueeze(2)  # [B, Q, 1, 2]
    normal = math.sqrt(2) * torch.erfinv(2 * noise.clamp(1e-6, 1 - 1e-6) - 1).unflatten(-1, (2, 2))
    moved = coords + (std * side * normal).clamp(-max_noise, max_noise)
    limit = torch.tensor(masks.shape[:-3:-1], device=masks.device, dtype=moved.dtype)  # (W, H)
    return torch.minimum(moved.clamp(min=0), limit), labels


def draw_prompts(
    point_coords: Tensor, point_labels: Tensor, *, size: tuple[int, int], cell: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The masks that prompts suggest before anybody has looked at the image, as logits.

    Of a box: what objects look like in their boxes on average, near enough an ellipse; 3 inside, falling to -16
    within two cells outside the box. (At -8 the chances of all the cells far away add up to more than a small
    object, and `dice_loss` is about them.) How steep it is was chosen for masks enlarged as `preprocess="squash"`
    does; the bilinear way of "pad" makes objects of a few cells smaller. Of foreground clicks: discs around them,
    whose radius is `DISC` of the drawing's longer side, 1 in the middle, 0 at the radius and -4 from three radii
    on, since that is no more than a guess. Clicks in a box add nothing to it, others their disc, which ends as the
    box does.

    Args:
        point_coords: [B, Q, P, 2] (x, y) pixels; a box is its two corners, among other points or alone.
        point_labels: [B, Q, P].
        size: (h, w) cells of the drawing.
        cell: pixels per cell.

    Returns:
        logits: [B, Q, h, w], all 0 where there is neither box nor foreground click.
        given: [B, Q] bool, whether there is one.
        seen: [B, Q] how much of what a network adds to the logits counts: of a box of less than `SEEN_SIDE` cells as
            much less, since it covers few of the network's tokens.
    """
    point_coords, point_labels = pad_points(point_coords, point_labels, num_points=max(point_labels.shape[2], 1))
    y, x = (torch.arange(side, device=point_coords.device) + 0.5 for side in size)
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [h, w, 2]
    first, last = (
        point_coords.masked_fill((point_labels != label).unsqueeze(-1), 0).sum(dim=2)[..., None, None, :] / cell
        for label in (TOP_LEFT, BOTTOM_RIGHT)
    )  # [B, Q, 1, 1, 2] each, cells
    inside = torch.minimum(centres - first, last - centres).amin(dim=-1)  # [B, Q, h, w] cells from the nearest edge
    place = (2 * centres - first - last) / (last - first).clamp(min=1)  # -1 to 1 in the box, or a cell if that is more
    radius = place.abs().pow(ROUNDNESS).sum(dim=-1).pow(1 / ROUNDNESS)
    box = torch.minimum(8 * (1 - radius), 8 * inside).clamp(-16, 3)
    has_box = (point_labels == TOP_LEFT).any(dim=-1)  # [B, Q]
    points = (point_coords + 0.5) / cell  # [B, Q, P, 2] cells, pixel centres
    within = ((points >= first[..., 0, :]) & (points <= last[..., 0, :])).all(dim=-1)  # [B, Q, P]
    clicked = (point_labels == FOREGROUND) & ~(within & has_box.unsqueeze(-1))
    clicks = points.masked_fill(~clicked.unsqueeze(-1), -math.inf)
    # as differences: by products, torch's way for so many, distances near 0 are wrong by a hundredth of a cell
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    nearest = torch.cdist(clicks.clamp(min=-1e4), centres.flatten(0, 1), **exact).amin(dim=2).unflatten(2, size)
    least = torch.where(has_box, -16.0, -4.0)[..., None, None]
    disc, has_disc = (2 - 2 * nearest / (DISC * max(size))).clamp(max=1).maximum(least), clicked.any(dim=-1)
    box, disc = (
        part.masked_fill(~given[..., None, None], -math.inf) for part, given in ((box, has_box), (disc, has_disc))
    )
    given = has_box | has_disc
    side = (last - first).flatten(2).prod(dim=-1).clamp(min=0).sqrt()  # [B, Q] cells
    seen = torch.where(has_box, (side / SEEN_SIDE).clamp(max=1), 1.0)
    return torch.maximum(box, disc).masked_fill(~given[..., None, None], 0), given, seen


def wants_several(several_for: str, *, num_clicks: int, has_box: bool) -> bool:
    """Whether to ask for several candidates and take the most confident; `several_for` is one of `SEVERAL_FOR`."""
    if several_for == "click":
        return num_clicks == 1 and not has_box
    return several_for == "any" or num_clicks + has_box == 1


def use_multimask(decoder: str, *, num_clicks: int, has_box: bool) -> bool:
    """Whether to ask for three candidate masks (`multimask_output`) and take the one of highest predicted IoU.

    SAM gives one mask for a prompt that leaves no doubt; a click or a box alone may mean several things
    (arXiv:2304.02643, Sec. 3). EfficientSAM is used with three for any prompt.

    Args:
        decoder: "sam" or "efficient_sam", see `sami.models.sam.Sam`.
    """
    return decoder == "efficient_sam" or num_clicks + has_box == 1


def choose_prompts(first: Prompts, second: Prompts, take_first: Tensor) -> Prompts:
    """For each object ([B, Q] bool) one prompt or the other, the shorter ones padded."""
    most = max(first[1].shape[2], second[1].shape[2])
    (coords, labels), (others, other_labels) = (pad_points(*prompts, num_points=most) for prompts in (first, second))
    chosen = take_first.unsqueeze(-1)
    return torch.where(chosen.unsqueeze(-1), coords, others), torch.where(chosen, labels, other_labels)


def add_clicks(prompts: Prompts, more: Prompts) -> Prompts:
    """The points of both: [B, Q, P, 2], [B, Q, P'] -> P + P' points."""
    return torch.cat([prompts[0], more[0]], dim=2), torch.cat([prompts[1], more[1]], dim=2)


def pad_points(point_coords: Tensor, point_labels: Tensor, *, num_points: int) -> Prompts:
    """Padding behind the points of each prompt, up to `num_points`."""
    missing = num_points - point_labels.shape[-1]
    coords = torch.nn.functional.pad(point_coords, (0, 0, 0, missing))
    return coords, torch.nn.functional.pad(point_labels, (0, missing), value=PADDING)


def pad_prompts(point_coords: Sequence[Tensor], point_labels: Sequence[Tensor]) -> Prompts:
    """B images with prompts of their own number and length -> [B, Q, P, 2], [B, Q, P], the rest padding.

    Args:
        point_coords: for each image [Q_i, P_i, 2].
        point_labels: for each image [Q_i, P_i].
    """
    num_prompts, num_points = (max(labels.shape[axis] for labels in point_labels) for axis in (0, 1))
    padded = []
    for coords, labels in zip(point_coords, point_labels, strict=True):
        coords, labels = pad_points(coords, labels, num_points=num_points)
        missing = num_prompts - len(labels)
        coords = torch.nn.functional.pad(coords, (0, 0, 0, 0, 0, missing))
        padded.append((coords, torch.nn.functional.pad(labels, (0, 0, 0, missing), value=PADDING)))
    coords, labels = zip(*padded, strict=True)
    return torch.stack(coords), torch.stack(labels)


def scale_prompts(prompts: Prompts, factor: float) -> Prompts:
    """The same prompts in a frame with `factor` times as many pixels per side.

    Edges of boxes are multiplied; a click stays on the centre of what its pixel covers, which is half a pixel less
    than the multiple of that centre.
    """
    coords, labels = prompts
    is_corner = ((labels == TOP_LEFT) | (labels == BOTTOM_RIGHT)).unsqueeze(-1)
    return torch.where(is_corner, coords * factor, (coords + 0.5) * factor - 0.5), labels
