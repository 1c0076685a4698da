"""mIoU of masks from a box and from clicks, by two protocols, beside the answers that need no model.

Measured on a grid over the image, at most `LONGEST_SIDE` pixels long, whatever the model's square is, so that the
numbers of models with another one can be compared. Prompts and answers change frames as in `SamPredictor`.

Q objects of one image   H W pixels of a grid over the image, see `ImageObjects.take`
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from sami.data.objects import LONGEST_SIDE, ImageObjects
from sami.metrics.mask_iou import BestDiscIoU, PromptedIoU
from sami.models.sam import Decode, most_confident
from sami.ops.frames import ImageFrame
from sami.ops.masks import mask_iou
from sami.ops.prompts import (
    Prompts,
    add_clicks,
    central_click,
    central_correction,
    tight_box,
    uniform_clicks,
    use_multimask,
)

NUM_CLICKS = (1, 3, 5)
KINDS = ("box", *(f"{way}_{number}" for way in ("click", "uniform") for number in NUM_CLICKS), "filled_box")
MEASURED_ON = f"box mIoU measured on masks of at most {LONGEST_SIDE} pixels on the longest side"  # and that of clicks
MASK_PIXELS = 2**24  # of full-size logits at a time


class EvalPrompts(NamedTuple):
    """How objects are pointed at, made of their exact masks and in the pixels of these.

    `box` is the tightest one, `central` the click farthest from the object's edge (arXiv:2304.02643, App. D.1),
    `uniform` the most clicks that are asked for, anywhere in the object (arXiv:2312.00863, Sec. 4.2).
    """

    box: Prompts
    central: Prompts
    uniform: Prompts


def make_prompts(masks: Tensor, noise: Tensor) -> EvalPrompts:
    """[1, Q, H, W] bool, [1, Q, ...] uniform in [0, 1), at least as many as the most clicks."""
    uniform = uniform_clicks(masks, noise[..., : max(NUM_CLICKS)])
    return EvalPrompts(tight_box(masks), central_click(masks), uniform)


def masks_from_prompts(
    decode: Decode, masks: Tensor, eval_prompts: EvalPrompts, grid: ImageFrame, *, decoder: str
) -> Iterator[tuple[str, Tensor]]:
    """(kind, mask of highest predicted IoU: [1, Q, H, W] bool), for the kinds of `KINDS` that need a model.

    `click_n` follows SAM (arXiv:2304.02643, App. D.1): after the central click, each further one is where the error
    is deepest, with the previous mask as prompt. `uniform_n` follows EfficientSAM: n clicks at once.

    Args:
        decode: see `Decode`; of the one image.
        masks: [1, Q, H, W] bool, on a grid over the image.
        eval_prompts: see `make_prompts`.
        grid: from there to the model's square.
        decoder: the model's, see `use_multimask`. "efficient_sam" knows neither background clicks nor mask prompts: it
            gets no corrections, but further clicks on the innermost pixels of what it missed.
    """

    def ask(prompts: Prompts, mask_input: Tensor | None, *, num_clicks: int) -> tuple[Tensor, Tensor]:
        (coords, labels), multimask = prompts, use_multimask(decoder, num_clicks=num_clicks, has_box=num_clicks == 0)
        low_res_masks = most_confident(*decode((grid.to_model(coords), labels), mask_input, multimask_output=multimask))
        return low_res_masks, grid.masks_to_original(low_res_masks.float()) > 0

    corrects = decoder != "efficient_sam"
    yield "box", ask(eval_prompts.box, None, num_clicks=0)[1]
    prompts, low_res_masks = eval_prompts.central, None
    for number in range(1, max(NUM_CLICKS) + 1):
        low_res_masks, prediction = ask(prompts, low_res_masks if corrects else None, num_clicks=number)
        if number in NUM_CLICKS:
            yield f"click_{number}", prediction
        if number < max(NUM_CLICKS):
            seen = prediction if corrects else prediction & masks
            prompts = add_clicks(prompts, central_correction(seen, masks))
    coords, labels = eval_prompts.uniform
    for number in NUM_CLICKS:
        clicks = coords[:, :, :number], labels[..., :number]
        yield f"uniform_{number}", ask(clicks, None, num_clicks=number)[1]


class MaskScores:
    """The numbers of one validation set: mIoU by kind of prompt, of the filled box and of the best disc.

    Args:
        device: where they add up.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.iou = device, PromptedIoU(KINDS).to(device)
        self.discs: dict[str, Metric] = {name: BestDiscIoU().to(device) for name in ("click_disc", "uniform_disc")}

    def update(self, decode: Decode, objects: ImageObjects, *, decoder: str) -> None:
        """Asks for every object of an image, as many at a time as `MASK_PIXELS` allows; see `masks_from_prompts`."""
        grid = objects.frame.shrunk(LONGEST_SIDE)
        size = grid.masks_at_once(MASK_PIXELS)
        for start in range(0, len(objects), size):
            masks, noise = (tensor.to(self.device) for tensor in objects.take(slice(start, start + size), grid))
            prompts = make_prompts(masks, noise)
            found = masks_from_prompts(decode, masks, prompts, grid, decoder=decoder)
            ious = {kind: mask_iou(prediction, masks)[0] for kind, prediction in found}
            sides = prompts.box[0].diff(dim=2).flatten(2)  # [1, Q, 2] (width, height)
            ious["filled_box"] = (masks.flatten(2).sum(dim=-1) / sides.prod(dim=-1))[0]  # the box holds the mask
            self.iou.update(ious)
            for disc, (coords, _) in zip(self.discs.values(), (prompts.central, prompts.uniform), strict=True):
                disc.update(masks[0], coords[0, :, 0])

    def compute(self) -> dict[str, Tensor]:
        """All numbers by name, over all ranks."""
        return {**self.iou.compute(), **{name: disc.compute() for name, disc in self.discs.items()}}
