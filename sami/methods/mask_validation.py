"""What a person would get: masks from a box and from clicks, by two protocols, beside the answers that need no model.

B images   Q objects per image   H W model frame
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchmetrics import Metric

from sami.methods.prompting import Decode, most_confident
from sami.metrics.mask_iou import BestDiscIoU, PromptedIoU
from sami.ops.boxes import box_to_mask, mask_to_box
from sami.ops.masks import enlarge, mask_iou
from sami.ops.prompts import add_clicks, central_click, central_correction, tight_box, uniform_clicks

NUM_CLICKS = (1, 3, 5)
KINDS = (
    "box",
    *(f"click_{number}" for number in NUM_CLICKS),
    *(f"uniform_{number}" for number in NUM_CLICKS),
    "filled_box",
)


def masks_from_prompts(
    decode: Decode, masks: Tensor, noise: Tensor, content: Tensor, *, multimask: bool
) -> Iterator[tuple[str, Tensor]]:
    """(kind, mask of highest predicted IoU: [B, Q, H, W] bool), for the kinds of `KINDS` that need a model.

    `box` is the tightest box. `click_n` follows SAM (arXiv:2304.02643, App. D.1): the first click is farthest from the
    object's edge, each further one from that of the error, with the previous mask as prompt. `uniform_n` follows
    EfficientSAM (arXiv:2312.00863, Sec. 4.2): n clicks anywhere in the object, at once.

    Args:
        decode: see `Decode`.
        masks: [B, Q, H, W] bool, in the model frame.
        noise: [B, Q, ...] uniform in [0, 1), at least as many as the most clicks.
        content: [B, 1, H, W] bool, false where the frame is padding; nothing is predicted there.
        multimask: ask for several candidates beyond the first click and the box too. A model that knows no background
            click then gets no corrections: its further clicks are the innermost pixels of what it missed.
    """

    def ask(prompts: tuple[Tensor, Tensor], mask_input: Tensor | None, several: bool) -> tuple[Tensor, Tensor]:
        low_res_masks = most_confident(*decode(prompts, mask_input, multimask_output=several))
        return low_res_masks, (enlarge(low_res_masks.float(), masks.shape[-2:]) > 0) & content

    yield "box", ask(tight_box(masks), None, True)[1]
    prompts, low_res_masks = central_click(masks), None
    for number in range(1, max(NUM_CLICKS) + 1):
        low_res_masks, prediction = ask(prompts, None if multimask else low_res_masks, multimask or number == 1)
        if number in NUM_CLICKS:
            yield f"click_{number}", prediction
        if number < max(NUM_CLICKS):
            seen = prediction & masks if multimask else prediction
            prompts = add_clicks(prompts, central_correction(seen, masks))
    for number in NUM_CLICKS:
        clicks = uniform_clicks(masks, noise[..., :number])
        yield f"uniform_{number}", ask(clicks, None, multimask or number == 1)[1]


class MaskScores:
    """The numbers of one validation set: mIoU by kind of prompt, of the filled box and of the best disc."""

    def __init__(self, device: torch.device) -> None:
        self.iou = PromptedIoU(KINDS).to(device)
        self.discs: dict[str, Metric] = {name: BestDiscIoU().to(device) for name in ("click_disc", "uniform_disc")}

    def update(self, decode: Decode, masks: Tensor, noise: Tensor, valid: Tensor, content: Tensor, **how: bool) -> None:
        """Asks for every mask of a batch; arguments as of `masks_from_prompts`, `valid`: [B, Q] bool."""
        answers = masks_from_prompts(decode, masks, noise, content, **how)
        ious = {kind: mask_iou(prediction, masks) for kind, prediction in answers}
        ious["filled_box"] = mask_iou(box_to_mask(mask_to_box(masks), masks.shape[-2:]), masks)
        self.iou.update(ious, valid)
        for disc, (coords, _) in zip(
            self.discs.values(), (central_click(masks), uniform_clicks(masks, noise[..., :1])), strict=True
        ):
            disc.update(masks, coords[:, :, 0], valid)

    def compute(self) -> dict[str, Tensor]:
        """All numbers by name, over all ranks."""
        return {**self.iou.compute(), **{name: disc.compute() for name, disc in self.discs.items()}}
