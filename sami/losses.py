"""Losses: masked feature prediction, encoder distillation, and SAM's focal, dice and IoU loss of masks.

B images   N tokens   M masked tokens   E target width
Q objects per image   K candidate masks   h w low-resolution masks   H W masks
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sami.ops.masking import MaskSplit, take_tokens
from sami.ops.masks import enlarge, mask_iou


def feature_loss(prediction: Tensor, target: Tensor, split: MaskSplit, *, distance: str, tokens: str) -> Tensor:
    """SAMI's loss, Eq. (1): mean distance between predicted and target features.

    "mse" over "all" tokens is Eq. (1) of arXiv:2312.00863 divided by E: the paper sums the squared difference over
    channels and averages over the N tokens, we average over channels too. MAE's loss is "mse" over "masked" tokens.

    Args:
        prediction, target: [B, N, E], tokens in image order.
        split: says which tokens are masked.
        distance: "mse", or "cosine" for 1 - cosine similarity of each token (the paper's Tab. 6).
        tokens: "all" or "masked".

    Raises:
        ValueError: unknown `distance` or `tokens`.
    """
    if tokens == "masked":
        prediction, target = take_tokens(prediction, split.ids_mask), take_tokens(target, split.ids_mask)  # [B, M, E]
    elif tokens != "all":
        raise ValueError(f"loss_tokens={tokens!r}: choose all or masked")
    if distance == "mse":
        return F.mse_loss(prediction.float(), target.float())
    if distance == "cosine":
        return 1 - F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()
    raise ValueError(f"loss_distance={distance!r}: choose mse or cosine")


def valid_token_loss(
    prediction: Tensor, target: Tensor, token_valid: Tensor, *, distance: str, std: Tensor | None = None
) -> Tensor:
    """Mean distance over the tokens that count: of each image, then over images, whichever share a device.

    "mse" over all tokens is what MobileSAM minimises (arXiv:2306.14289, Sec. 3.3).

    Args:
        prediction, target: [B, N, E].
        token_valid: [B, N] bool; an image without any counts as zero.
        distance: "mse", "cosine" for 1 - cosine similarity of each token, or "standardized_mse", in units of `std`.
        std: [E] deviation of each channel of the target.

    Raises:
        ValueError: unknown `distance`.
    """
    # where, since what does not count may hold anything, and the gradient of 0 * inf is not 0
    prediction, target = (torch.where(token_valid.unsqueeze(-1), part.float(), 0.0) for part in (prediction, target))
    if distance == "cosine":
        distances = 1 - F.cosine_similarity(prediction, target, dim=-1)  # [B, N]
    elif distance in ("mse", "standardized_mse"):
        difference = prediction - target
        if distance == "standardized_mse":
            assert std is not None
            difference = difference / std
        distances = difference.square().mean(dim=-1)
    else:
        raise ValueError(f"loss_distance={distance!r}: choose mse, cosine or standardized_mse")
    return ((distances * token_valid).sum(dim=1) / token_valid.sum(dim=1).clamp(min=1)).mean()


class MaskLoss(NamedTuple):
    """The loss of predicted masks and its parts, each a mean over images of the mean over their objects."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor


def mask_loss(
    low_res_masks: Tensor,
    iou_predictions: Tensor,
    masks: Tensor,
    object_valid: Tensor,
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_weight: float = 1.0,
) -> MaskLoss:
    """SAM's loss: focal and dice of the best of K candidates, and the error of the predicted IoU (arXiv:2304.02643).

    The best candidate is that of lowest weighted focal and dice; the others learn nothing from this object but what
    their own IoU is. (The paper does not say whether it trains the IoU of all candidates or of the best: choosing
    among them at inference needs all.) Means are over objects of an image, then over images, so that the gradient
    does not depend on which images share a device.

    Args:
        low_res_masks: [B, Q, K, h, w] logits, enlarged bilinearly to the size of the masks.
        iou_predictions: [B, Q, K].
        masks: [B, Q, H, W] bool.
        object_valid: [B, Q] bool; other objects count nothing.
        focal_weight, dice_weight, iou_weight: 20 : 1 : 1 (App. A).
    """
    logits = enlarge(low_res_masks.float(), masks.shape[-2:])  # [B, Q, K, H, W]
    truth = masks.unsqueeze(2)  # [B, Q, 1, H, W]
    measured = mask_iou(logits.detach() > 0, truth)  # [B, Q, K]
    if logits.shape[2] > 1:
        with torch.no_grad():  # only the best needs a graph
            losses = focal_weight * focal_loss(logits, truth) + dice_weight * dice_loss(logits, truth)  # [B, Q, K]
            best = losses.argmin(dim=-1)[..., None, None, None]
        logits = logits.take_along_dim(best, dim=2)
    chosen = logits[:, :, 0]  # [B, Q, H, W]
    focal, dice = focal_loss(chosen, masks), dice_loss(chosen, masks)  # [B, Q] each
    error = (iou_predictions.float() - measured).square().mean(dim=-1)  # [B, Q]
    weight = object_valid / object_valid.sum(dim=1, keepdim=True).clamp(min=1) / len(object_valid)  # [B, Q]
    # where, since padded prompts may hold anything, and 0 * inf is not 0
    focal, dice, iou = (torch.where(object_valid, part, 0.0).mul(weight).sum() for part in (focal, dice, error))
    return MaskLoss(focal_weight * focal + dice_weight * dice + iou_weight * iou, focal, dice, iou)


def focal_loss(logits: Tensor, masks: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """[..., H, W], bool of a shape that broadcasts -> [...]: mean over pixels (arXiv:1708.02002, Eq. 5).

    With p the chance of a pixel to be object, the slope at logit 0 has the sign of (1 - alpha) * (1 - p) - alpha * p:
    at alpha = 0.25 a pixel is called object only where p > 0.75.
    """
    sign = 2 * masks.to(logits.dtype) - 1  # products: torch.where takes five times as long on a CPU
    signed = sign * logits  # how strongly the pixel is called what it is
    balance = 0.5 + (alpha - 0.5) * sign
    return (balance * torch.sigmoid(-signed) ** gamma * F.softplus(-signed)).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """[..., H, W], bool of a shape that broadcasts -> [...]: 1 - (2 overlap + 1) / (sum of areas + 1).

    Departure: V-Net (arXiv:1606.04797, Sec. 3), whose loss SAM's paper names, has sums of squares in the denominator
    and no ones. Plain sums and a one on either side are `dice_loss` of DETR (facebookresearch/detr,
    models/segmentation.py) and MaskFormer, which SAM says it follows; its own training code is not published.
    """
    probability = logits.sigmoid()
    overlap = (masks * probability).sum(dim=(-2, -1))
    areas = probability.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (areas + 1)
