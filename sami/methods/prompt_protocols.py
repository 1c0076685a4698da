"""How objects are prompted while a promptable segmenter trains: as SAM samples prompts, and as EfficientSAM's can be.

B images   Q objects per image   P points per prompt   K candidate masks   H W pixels of the masks
h w low-resolution masks
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sami.data.sampling import NUM_NOISE
from sami.models.sam import Candidates, Decode, most_confident
from sami.ops.masks import enlarge
from sami.ops.prompts import (
    PAD_LABEL,
    add_clicks,
    choose_prompts,
    noisy_box,
    random_correction,
    scale_prompts,
    uniform_clicks,
)


class PromptNoise(NamedTuple):
    """The uniform numbers in [0, 1) of an object, by what they decide."""

    kind: Tensor  # [B, Q] click or box
    click: Tensor  # [B, Q, 1] the first click
    box: Tensor  # [B, Q, 4] displacement of the box's edges
    number: Tensor  # [B, Q] which iteration brings no click, or how many clicks there are
    clicks: Tensor  # [B, Q, MAX_CLICKS] corrections, or the clicks that are given at once
    place: Tensor  # [B, Q, 2] a place anywhere in the image, for distillation

    @classmethod
    def split(cls, noise: Tensor) -> "PromptNoise":
        """[B, Q, NUM_NOISE] -> views of it."""
        kind, click, box, number, clicks, place = noise.split([1, 1, 4, 1, MAX_CLICKS, 2], dim=-1)
        return cls(kind[..., 0], click, box, number[..., 0], clicks, place)


MAX_CLICKS = NUM_NOISE - 9


class PromptSampling(Protocol):
    """A way of prompting: each iteration of it gives candidates that the loss is asked about."""

    corrects: bool  # gives background clicks and mask prompts, which EfficientSAM's released decoder does not know

    def iterations(
        self, decode: Decode, masks: Tensor, noise: Tensor, *, image_size: int, boxes: Tensor | None = None
    ) -> Iterator[Candidates]:
        """The candidates of each iteration.

        Args:
            decode: see `Decode`.
            masks: [B, Q, H, W] bool, the objects. Padding asks with padding.
            noise: [B, Q, NUM_NOISE] uniform in [0, 1); all that is random follows from it, see `PromptNoise`.
            image_size: pixels per side of the model frame.
            boxes: [B, Q, 4] around the objects, in pixels of the masks and fractions of them; None: the masks' own.
        """
        ...


class SamProtocol:
    """SAM's interactive training, an imagined annotator who corrects (arXiv:2304.02643, App. A).

    First a click or a noisy box, answered by three candidates. Then clicks anywhere in the error
    region of the mask of highest predicted IoU, whose logits are given back as mask prompt, answered by one candidate.
    Iterations without a new click let the model refine its own mask: the last, and one that is drawn for each object.
    No gradient flows from one iteration into the one before.

    Args:
        num_clicks: corrections; 8 in the paper. With 0, and 0 refinements, the answer to `multimask_output=False`
            is never trained.
        num_refinements: iterations without a new click: 2 in the paper, 1 for the last only, or 0.
        box_noise: standard deviation of the box's displacement as a fraction of its side.
        max_box_noise: its bound as a fraction of the model frame's side; the paper's 20 pixels of 1024.
        box_chance: of the first prompt to be a box; the paper's is a half.

    Raises:
        ValueError: a chance outside [0, 1], a number of iterations that makes no sense, or more than there is noise
            for.
    """

    corrects = True

    def __init__(
        self,
        *,
        num_clicks: int,
        num_refinements: int,
        box_noise: float = 0.1,
        max_box_noise: float = 20 / 1024,
        box_chance: float = 0.5,
    ) -> None:
        if not 0 <= box_chance <= 1:
            raise ValueError(f"box_chance={box_chance}: give a number from 0 to 1")
        if not 0 <= num_clicks <= MAX_CLICKS or num_refinements not in (0, 1, 2):
            raise ValueError(
                f"num_clicks={num_clicks}, num_refinements={num_refinements}: give 0 to {MAX_CLICKS} clicks and 0, 1 "
                "or 2 refinements"
            )
        self.num_clicks, self.num_refinements = num_clicks, num_refinements
        self.box_noise, self.max_box_noise, self.box_chance = box_noise, max_box_noise, box_chance

    def iterations(
        self, decode: Decode, masks: Tensor, noise: Tensor, *, image_size: int, boxes: Tensor | None = None
    ) -> Iterator[Candidates]:
        drawn = PromptNoise.split(noise)
        click = uniform_clicks(masks, drawn.click)
        max_noise = self.max_box_noise * masks.shape[-1]  # pixels of the masks
        box = noisy_box(masks, drawn.box, boxes=boxes, std=self.box_noise, max_noise=max_noise)
        prompts = choose_prompts(click, box, drawn.kind < 1 - self.box_chance)
        # among those between first and last; drawn for each object, so that no iteration is special to a batch
        refined = 1 + (drawn.number * (self.num_clicks + 1)).floor() if self.num_refinements == 2 else None  # [B, Q]
        mask_input, cell = None, image_size / masks.shape[-1]  # model pixels per pixel of the masks
        num_iterations = 1 + self.num_clicks + self.num_refinements  # 11 in the paper
        for number in range(num_iterations):
            candidates = decode(scale_prompts(prompts, cell), mask_input, multimask_output=number == 0)
            yield candidates
            if number + 1 < num_iterations:
                mask_input = most_confident(*candidates)
            if mask_input is not None and number + 1 < num_iterations - (self.num_refinements > 0):
                prediction = enlarge(mask_input, (masks.shape[-2], masks.shape[-1])) > 0
                coords, labels = random_correction(prediction, masks, drawn.clicks[..., number])
                if refined is not None:
                    labels = torch.where((refined == number + 1).unsqueeze(-1), PAD_LABEL, labels)
                prompts = add_clicks(prompts, (coords, labels))


class PointsProtocol:
    """Foreground clicks or a box, all at once and once only: how EfficientSAM can be asked (arXiv:2312.00863).

    Its prompt encoder knows neither background clicks nor mask prompts, and it always gives three candidates. What it
    was trained with beyond "following SAM" is not published; that clicks and boxes come with equal chance, and one to
    `max_points` clicks likewise, is this project's choice. With decoder=sam, the answer to `multimask_output=False`,
    which `use_multimask` asks for after several clicks, is never trained.

    Args:
        max_points: clicks at most; its decoder takes 6.
        box_noise, max_box_noise: as of `SamProtocol`.

    Raises:
        ValueError: fewer than one click, or more than there is noise for.
    """

    corrects = False

    def __init__(self, *, max_points: int, box_noise: float = 0.1, max_box_noise: float = 20 / 1024) -> None:
        if not 1 <= max_points <= MAX_CLICKS:
            raise ValueError(f"max_points={max_points}: give 1 to {MAX_CLICKS}")
        self.max_points, self.box_noise, self.max_box_noise = max_points, box_noise, max_box_noise

    def iterations(
        self, decode: Decode, masks: Tensor, noise: Tensor, *, image_size: int, boxes: Tensor | None = None
    ) -> Iterator[Candidates]:
        drawn = PromptNoise.split(noise)
        coords, labels = uniform_clicks(masks, drawn.clicks[..., : self.max_points])
        count = 1 + (drawn.number.unsqueeze(-1) * self.max_points).floor()  # [B, Q, 1]
        clicks = coords, torch.where(torch.arange(self.max_points, device=count.device) < count, labels, PAD_LABEL)
        max_noise = self.max_box_noise * masks.shape[-1]
        box = noisy_box(masks, drawn.box, boxes=boxes, std=self.box_noise, max_noise=max_noise)
        prompts = choose_prompts(clicks, box, drawn.kind < 0.5)
        yield decode(scale_prompts(prompts, image_size / masks.shape[-1]), None, multimask_output=True)
