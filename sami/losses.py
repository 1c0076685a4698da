"""What is minimised.

B images   N tokens   M masked tokens   E target width
"""

import torch.nn.functional as F
from torch import Tensor

from sami.ops.masking import MaskSplit, take_tokens


def feature_loss(prediction: Tensor, target: Tensor, split: MaskSplit, *, distance: str, tokens: str) -> Tensor:
    """Mean distance between predicted and target features.

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
