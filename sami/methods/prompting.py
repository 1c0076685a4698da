"""How objects are pointed at while a promptable segmenter trains: SAM's protocol and EfficientSAM's.

B images   Q objects per image   P points per prompt   K candidate masks   H W pixels of the masks
h w low-resolution masks
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from sami.data.sampling import NUM_NOISE
from sami.models.sam import Sam
from sami.models.two_way_transformer import ImageSide
from sami.ops.masks import enlarge
from sami.ops.prompts import (
    PADDING,
    Prompts,
    add_clicks,
    choose_prompts,
    noisy_box,
    random_correction,
    scale_prompts,
    uniform_clicks,
)

Candidates = tuple[Tensor, Tensor]  # low_res_masks [B, Q, K, h, w] logits, iou_predictions [B, Q, K]


class Decode(Protocol):
    """A model that has seen the images: prompts in the model frame, and a mask to start from, to candidate masks."""

    def __call__(self, prompts: Prompts, mask_input: Tensor | None, *, multimask_output: bool) -> Candidates:
        """`mask_input` is [B, Q, h, w] logits. K is 3 with `multimask_output` and 1 without."""


def decode_with(model: Sam, image_embeddings: Tensor | ImageSide) -> Decode:
    """A model that has the embeddings [B, 256, gh, gw] of some images, or what `Sam.prepare` made of them.

    Given embeddings, each call prepares them anew, and shares no graph with another.
    """

    def decode(prompts: Prompts, mask_input: Tensor | None, *, multimask_output: bool) -> Candidates:
        return model.decode(image_embeddings, *prompts, mask_input, multimask_output=multimask_output)

    return decode


class PromptProtocol(Protocol):
    """A way of prompting: each round of it gives candidates that the loss is asked about."""

    several_for: str  # which prompts it asks several candidates for, one of `SEVERAL_FOR`

    def rounds(
        self, decode: Decode, masks: Tensor, noise: Tensor, *, side: int, boxes: Tensor | None = None
    ) -> Iterator[Candidates]:
        """The candidates of each round.

        Args:
            decode: see `Decode`.
            masks: [B, Q, H, W] bool, the objects. Padding asks with padding.
            noise: [B, Q, NUM_NOISE] uniform in [0, 1); all that is random follows from it.
            side: pixels per side of the model frame.
            boxes: [B, Q, 4] around the objects, in pixels of the masks and fractions of them; None: the masks' own.
        """


class SamProtocol:
    """An imagined annotator who corrects (arXiv:2304.02643, App. A).

    First a click or a noisy box, answered by three candidates. Then clicks anywhere in the error
    region of the mask of highest predicted IoU, whose logits are given back as mask prompt, answered by one candidate.
    Rounds without a new click let the model improve on its own mask: the last, and one that is drawn for each object.
    No gradient flows from one round into the one before.

    Args:
        num_clicks: corrections; 8 in the paper. With 0, and 0 repeats, the answer to `multimask_output=False`
            is never trained.
        num_repeats: rounds without a new click: 2 in the paper, 1 for the last only, or 0.
        box_noise: standard deviation of the box's displacement as a fraction of its side.
        max_box_noise: its bound as a fraction of the model frame's side; the paper's 20 pixels of 1024.
        box_chance: of the first prompt to be a box; the paper's is a half.
        box_candidates: 3 as in the paper, or 1: a box is taken to mean one thing and answered by one mask, and all
            first prompts of a batch are boxes, or all are clicks.

    Raises:
        ValueError: a chance outside [0, 1], a number of candidates or rounds that makes no sense, or more rounds than
            there is noise for.
    """

    first_correction = 7  # the noise before: click or box, the click, four for the box, the round that repeats

    def __init__(
        self,
        *,
        num_clicks: int,
        num_repeats: int,
        box_noise: float = 0.1,
        max_box_noise: float = 20 / 1024,
        box_chance: float = 0.5,
        box_candidates: int = 3,
    ) -> None:
        if box_candidates not in (1, 3):
            raise ValueError(f"box_candidates={box_candidates}: give 3, as in the paper, or 1")
        if not 0 <= box_chance <= 1:
            raise ValueError(f"box_chance={box_chance}: give a number from 0 to 1")
        if not 0 <= num_clicks <= NUM_NOISE - self.first_correction - 1 or num_repeats not in (0, 1, 2):
            raise ValueError(
                f"num_clicks={num_clicks}, num_repeats={num_repeats}: give 0 to "
                f"{NUM_NOISE - self.first_correction - 1} clicks and 0, 1 or 2 repeats"
            )
        self.num_clicks, self.num_repeats = num_clicks, num_repeats
        self.box_noise, self.max_box_noise, self.box_chance = box_noise, max_box_noise, box_chance
        self.box_candidates = box_candidates
        self.several_for = "lone" if box_candidates == 3 else "click"

    @property
    def num_rounds(self) -> int:
        """1 + num_clicks + num_repeats: 11 in the paper."""
        return 1 + self.num_clicks + self.num_repeats

    def rounds(
        self, decode: Decode, masks: Tensor, noise: Tensor, *, side: int, boxes: Tensor | None = None
    ) -> Iterator[Candidates]:
        """See `PromptProtocol`."""
        cell = side / masks.shape[-1]  # model pixels per pixel of the masks
        click = uniform_clicks(masks, noise[..., 1:2])
        max_noise = self.max_box_noise * side / cell
        box = noisy_box(masks, noise[..., 2:6], boxes=boxes, std=self.box_noise, max_noise=max_noise)
        clicked = noise[..., 0] < 1 - self.box_chance  # [B, Q]
        if self.box_candidates == 1:
            clicked = clicked[:1, :1].expand_as(clicked)
        prompts, several = choose_prompts(click, box, clicked), self.box_candidates == 3 or bool(clicked[0, 0])
        # among the rounds between first and last; drawn for each object, so that no round is special to a batch
        repeated = 1 + (noise[..., 6] * (self.num_clicks + 1)).floor() if self.num_repeats == 2 else None  # [B, Q]
        mask_input = None
        for number in range(self.num_rounds):
            candidates = decode(scale_prompts(prompts, cell), mask_input, multimask_output=several and number == 0)
            yield candidates
            if number + 1 < self.num_rounds:
                mask_input = most_confident(*candidates)
            if number + 1 < self.num_rounds - (self.num_repeats > 0):
                prediction = enlarge(mask_input, masks.shape[-2:]) > 0
                coords, labels = random_correction(prediction, masks, noise[..., self.first_correction + number])
                if repeated is not None:
                    labels = torch.where((repeated == number + 1).unsqueeze(-1), PADDING, labels)
                prompts = add_clicks(prompts, (coords, labels))


class PointsProtocol:
    """Foreground clicks or a box, all at once and once only: how EfficientSAM can be asked (arXiv:2312.00863).

    Its prompt encoder knows neither background clicks nor mask prompts, and it always gives three candidates. What it
    was trained with beyond "following SAM" is not published; that clicks and boxes come with equal chance, and one to
    `max_points` clicks likewise, is this project's choice.

    Args:
        max_points: clicks at most; its decoder takes 6.
        box_noise, max_box_noise: as of `SamProtocol`.

    Raises:
        ValueError: fewer than one click, or more than there is noise for.
    """

    several_for = "any"
    first_click = 7

    def __init__(self, *, max_points: int, box_noise: float = 0.1, max_box_noise: float = 20 / 1024) -> None:
        if not 1 <= max_points <= NUM_NOISE - self.first_click:
            raise ValueError(f"max_points={max_points}: give 1 to {NUM_NOISE - self.first_click}")
        self.max_points, self.box_noise, self.max_box_noise = max_points, box_noise, max_box_noise

    def rounds(
        self, decode: Decode, masks: Tensor, noise: Tensor, *, side: int, boxes: Tensor | None = None
    ) -> Iterator[Candidates]:
        """See `PromptProtocol`."""
        cell = side / masks.shape[-1]
        coords, labels = uniform_clicks(masks, noise[..., self.first_click : self.first_click + self.max_points])
        count = 1 + (noise[..., 6:7] * self.max_points).floor()  # [B, Q, 1]
        clicks = coords, torch.where(torch.arange(self.max_points, device=count.device) < count, labels, PADDING)
        max_noise = self.max_box_noise * side / cell
        box = noisy_box(masks, noise[..., 2:6], boxes=boxes, std=self.box_noise, max_noise=max_noise)
        prompts = choose_prompts(clicks, box, noise[..., 0] < 0.5)
        yield decode(scale_prompts(prompts, cell), None, multimask_output=True)


def most_confident(low_res_masks: Tensor, iou_predictions: Tensor) -> Tensor:
    """[B, Q, K, h, w], [B, Q, K] -> [B, Q, h, w]: the logits of highest predicted IoU, without gradient."""
    best = iou_predictions.detach().argmax(dim=-1)[..., None, None, None]
    return low_res_masks.detach().take_along_dim(best, dim=2)[:, :, 0]
