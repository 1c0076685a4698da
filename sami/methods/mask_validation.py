"""What a person would get: masks from a box and from clicks, by two protocols, beside the answers that need no model.

Everything is measured in the pixels of the photo, as papers report it, so that the numbers of models with another frame
can be compared. Prompts and answers change frames as in `SamPredictor`.

Q objects of one photo   H W pixels of a grid over the photo, see `ImageObjects.take`
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from sami.data.objects import LONGEST_SIDE, ImageObjects
from sami.methods.prompting import Decode, most_confident
from sami.metrics.mask_iou import BestDiscIoU, PromptedIoU
from sami.models.sam import Sam
from sami.ops.boxes import mask_to_box
from sami.ops.frames import ImageFrame
from sami.ops.masks import mask_iou
from sami.ops.prompts import (
    Prompts,
    add_clicks,
    central_click,
    central_correction,
    tight_box,
    uniform_clicks,
    wants_several,
)
from sami.predict.zoom import predict_zoomed

NUM_CLICKS = (1, 3, 5)
KINDS = (
    "box",
    *(f"click_{number}" for number in NUM_CLICKS),
    *(f"uniform_{number}" for number in NUM_CLICKS),
    "filled_box",
)
ZOOMED = "zoomed_box"
MASK_PIXELS = 2**24  # of full-size logits at a time


class Pointers(NamedTuple):
    """How objects are pointed at, made of their exact masks and in the pixels of these.

    `box` is the tightest one, `central` the click farthest from the object's edge (arXiv:2304.02643, App. D.1),
    `uniform` the most clicks that are asked for, anywhere in the object (arXiv:2312.00863, Sec. 4.2).
    """

    box: Prompts
    central: Prompts
    uniform: Prompts


def point_at(masks: Tensor, noise: Tensor) -> Pointers:
    """[1, Q, H, W] bool, [1, Q, ...] uniform in [0, 1), at least as many as the most clicks."""
    uniform = uniform_clicks(masks, noise[..., : max(NUM_CLICKS)])
    return Pointers(tight_box(masks), central_click(masks), uniform)


def masks_from_prompts(
    decode: Decode, masks: Tensor, pointers: Pointers, grid: ImageFrame, *, several_for: str
) -> Iterator[tuple[str, Tensor]]:
    """(kind, mask of highest predicted IoU: [1, Q, H, W] bool), for the kinds of `KINDS` that need a model.

    `click_n` follows SAM (arXiv:2304.02643, App. D.1): after the central click, each further one is where the error
    is deepest, with the previous mask as prompt. `uniform_n` follows EfficientSAM: n clicks at once.

    Args:
        decode: see `Decode`; of the one photo.
        masks: [1, Q, H, W] bool, on a grid over the photo.
        pointers: see `point_at`.
        grid: from there to the model's square.
        several_for: see `wants_several`. A model that gives several for any prompt knows neither background clicks nor
            mask prompts: it gets no corrections, but further clicks on the innermost pixels of what it missed.
    """

    def ask(prompts: Prompts, mask_input: Tensor | None, several: bool) -> tuple[Tensor, Tensor]:
        coords, labels = prompts
        low_res_masks = most_confident(*decode((grid.to_model(coords), labels), mask_input, multimask_output=several))
        return low_res_masks, grid.masks_to_original(low_res_masks.float()) > 0

    corrects = several_for != "any"
    yield "box", ask(pointers.box, None, wants_several(several_for, num_clicks=0, has_box=True))[1]
    prompts, low_res_masks = pointers.central, None
    for number in range(1, max(NUM_CLICKS) + 1):
        several = wants_several(several_for, num_clicks=number, has_box=False)
        low_res_masks, prediction = ask(prompts, low_res_masks if corrects else None, several)
        if number in NUM_CLICKS:
            yield f"click_{number}", prediction
        if number < max(NUM_CLICKS):
            seen = prediction if corrects else prediction & masks
            prompts = add_clicks(prompts, central_correction(seen, masks))
    coords, labels = pointers.uniform
    for number in NUM_CLICKS:
        clicks = coords[:, :, :number], labels[..., :number]
        several = wants_several(several_for, num_clicks=number, has_box=False)
        yield f"uniform_{number}", ask(clicks, None, several)[1]


class MaskScores:
    """The numbers of one validation set: mIoU by kind of prompt, of the filled box and of the best disc.

    Args:
        device: where they add up.
        zoom_with: a model to ask for each box once more, in a window of the photo around it: see `predict_zoomed`.
            What it finds is compared in the photo's own pixels, also where `LONGEST_SIDE` has fewer for the others.
    """

    def __init__(self, device: torch.device, *, zoom_with: Sam | None = None) -> None:
        self.device, self.zoom_with = device, zoom_with
        self.iou = PromptedIoU((*KINDS, ZOOMED) if zoom_with else KINDS).to(device)
        self.discs: dict[str, Metric] = {name: BestDiscIoU().to(device) for name in ("click_disc", "uniform_disc")}

    def add_photo(self, decode: Decode, objects: ImageObjects, *, several_for: str) -> None:
        """Asks for every object of a photo, as many at a time as `MASK_PIXELS` allows; see `masks_from_prompts`."""
        grid = objects.frame.shrunk(LONGEST_SIDE)
        size = grid.masks_at_once(MASK_PIXELS)
        for start in range(0, len(objects), size):
            taken = objects.take(slice(start, start + size), grid)
            masks, noise = (tensor.to(self.device) for tensor in taken)
            pointers = point_at(masks, noise)
            answers = masks_from_prompts(decode, masks, pointers, grid, several_for=several_for)
            ious = {kind: mask_iou(prediction, masks)[0] for kind, prediction in answers}
            sides = pointers.box[0].diff(dim=2).flatten(2)  # [1, Q, 2] (width, height)
            ious["filled_box"] = (masks.flatten(2).sum(dim=-1) / sides.prod(dim=-1))[0]  # the box holds the mask
            if self.zoom_with:
                ious[ZOOMED] = zoomed_iou(self.zoom_with, objects, range(start, start + masks.shape[1]))
            self.iou.update(ious)
            for disc, (coords, _) in zip(self.discs.values(), (pointers.central, pointers.uniform), strict=True):
                disc.update(masks[0], coords[0, :, 0])

    def compute(self) -> dict[str, Tensor]:
        """All numbers by name, over all ranks."""
        return {**self.iou.compute(), **{name: disc.compute() for name, disc in self.discs.items()}}


def zoomed_iou(model: Sam, objects: ImageObjects, rows: range) -> Tensor:
    """[Q] IoU of what `predict_zoomed` finds in the exact boxes of some objects of a photo, in the photo's pixels."""
    pixels, several = objects.pixels(), wants_several(model.several_for, num_clicks=0, has_box=True)
    ious = []
    for row in rows:  # one at a time, as masks of a large photo are large
        masks, _ = objects.take(slice(row, row + 1), objects.frame)  # [1, 1, Ho, Wo]
        found, confidence = predict_zoomed(model, pixels, mask_to_box(masks[0]).numpy(), multimask_output=several)
        best = torch.from_numpy(found[0, confidence[0].argmax()])
        ious.append(mask_iou(best, masks[0, 0]))
    return torch.stack(ious).to(model.device)
