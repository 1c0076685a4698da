"""Which parameters train, how fast, and which of them decay."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

PARTS = ("image_encoder", "neck", "prompt_encoder", "mask_decoder")
EARLY = re.compile(r"image_encoder\.(?:blocks\.(?P<block>\d+)|patch_embed|pos_embed|cls_token)(?:\.|$)")


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """Parameters of other parts get no gradient. The neck is the end of the image encoder, and may be named alone.

    Raises:
        ValueError: an unknown part, or none.
    """
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise ValueError(f"train_parts={list(parts)}: choose one or more of {', '.join(PARTS)}")
    for part, network in (*model.named_children(), ("neck", model.get_submodule("image_encoder.neck"))):
        network.requires_grad_(part in parts or (part == "neck" and "image_encoder" in parts))


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in groups for an optimiser: matrices decay, what `is_plain` names does not.

    With `layer_decay` below 1, the earlier a layer of the image encoder, the slower it learns: of L blocks, block i
    (from 0) at lr * layer_decay ** (L - i), what lies before the blocks at lr * layer_decay ** (L + 1), all behind them
    at lr (arXiv:2304.02643, App. A: 0.8 for ViT-H).

    Raises:
        ValueError: `layer_decay` is not in (0, 1], or below 1 for an encoder without `blocks`.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: give a number in (0, 1]")
    blocks = getattr(model.image_encoder, "blocks", None) if layer_decay < 1 else ()
    if blocks is None:
        raise ValueError(f"layer_decay={layer_decay} needs an encoder of blocks, as a ViT is: set it to 1")
    depth = len(blocks)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            number = layer_number(name, depth) if layer_decay < 1 else depth + 1
            plain = is_plain(name, parameter) or id(parameter) in tables
            groups.setdefault((number, plain), []).append(parameter)
    rates = {number: lr * layer_decay ** (depth + 1 - number) for number, _ in groups}
    return [
        {"params": parameters, "lr": rates[number], "weight_decay": 0.0 if plain else weight_decay}
        for (number, plain), parameters in sorted(groups.items())
    ]


def is_plain(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has no weight decay: norms, biases (also tables of them), tokens and position embeddings.

    Embedding tables have none either: the vectors that stand for kinds of prompts and of outputs.
    """
    last = name.rpartition(".")[2]
    return parameter.ndim <= 1 or last.endswith("_token") or "pos" in last or "bias" in last


def layer_number(name: str, depth: int) -> int:
    """0 for what lies before the blocks of the image encoder, 1 + i for block i, depth + 1 for all the rest."""
    if match := EARLY.match(name):
        return 0 if match["block"] is None else 1 + int(match["block"])
    return depth + 1
