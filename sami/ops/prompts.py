"""Point and box prompts sampled from masks, each a function of a mask and of uniform numbers that are handed in.

Clicks and boxes are both points with labels. A click is the (x, y) of a pixel; the corners of a box are edges, so that
the box of the single pixel in column 3, row 5 is (3, 5), (4, 6). All are in the frame of the masks; `scale_prompts`
brings them into a finer one.

B images   Q prompts (objects) per image   P points per prompt   H W pixels of the masks
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sami.ops.boxes import mask_to_box
from sami.ops.masks import innermost_pixel

FOREGROUND, BACKGROUND = 1, 0
TOP_LEFT, BOTTOM_RIGHT = 2, 3
PAD_LABEL = -1

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
    return coords, torch.where(found, FOREGROUND, PAD_LABEL).unsqueeze(-1).expand(coords.shape[:-1])


def central_click(masks: Tensor) -> Prompts:
    """One foreground click on the pixel farthest from the edge of the mask (arXiv:2304.02643, App. D.1)."""
    coords, depth = innermost_pixel(masks)
    return coords.unsqueeze(2), torch.where(depth > 0, FOREGROUND, PAD_LABEL).unsqueeze(-1)


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
    return coords, torch.where(found.unsqueeze(-1), labels, PAD_LABEL)


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
    return coords.unsqueeze(2), torch.where(found, labels, PAD_LABEL).unsqueeze(-1)


def tight_box(masks: Tensor) -> Prompts:
    """The corners of the tightest box around each mask: [B, Q, 2, 2]; padding for an empty mask."""
    boxes = mask_to_box(masks)
    labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=masks.device).expand(*boxes.shape[:2], 2)
    return boxes.unflatten(-1, (2, 2)), torch.where(masks.flatten(2).any(-1, keepdim=True), labels, PAD_LABEL)


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
    coords, others = (F.pad(points, (0, 0, 0, most - points.shape[2])) for points, _ in (first, second))
    labels, other_labels = (F.pad(given, (0, most - given.shape[2]), value=PAD_LABEL) for _, given in (first, second))
    chosen = take_first.unsqueeze(-1)
    return torch.where(chosen.unsqueeze(-1), coords, others), torch.where(chosen, labels, other_labels)


def join_box(point_coords: Tensor | None, point_labels: Tensor | None, boxes: Tensor | None) -> Prompts | None:
    """Points, and after them the corners of a box: [Q, P, 2], [Q, P], [Q, 4] -> P + 2 points; None of nothing."""
    points = None if point_coords is None or point_labels is None else (point_coords, point_labels)
    if boxes is None:
        return points
    corners = boxes.reshape(-1, 2, 2)
    box = corners, torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=boxes.device).expand(len(corners), 2)
    return box if points is None else add_clicks(points, box)


def add_clicks(prompts: Prompts, more: Prompts) -> Prompts:
    """The points of both: [..., P, 2], [..., P', 2] -> P + P' points."""
    return torch.cat([prompts[0], more[0]], dim=-2), torch.cat([prompts[1], more[1]], dim=-1)


def scale_prompts(prompts: Prompts, factor: float) -> Prompts:
    """The same prompts in a frame with `factor` times as many pixels per side.

    Edges of boxes are multiplied; a click stays on the centre of what its pixel covers, which is half a pixel less
    than the multiple of that centre.
    """
    coords, labels = prompts
    is_corner = ((labels == TOP_LEFT) | (labels == BOTTOM_RIGHT)).unsqueeze(-1)
    return torch.where(is_corner, coords * factor, (coords + 0.5) * factor - 0.5), labels
