import pytest
import torch
from torch import nn

from sami.methods.optimizer import parameter_groups
from sami.models.build import build_sam
from sami.models.sami import SAMI, CrossAttentionDecoder
from sami.models.vit import ViT


def decays(model: nn.Module) -> dict[str, bool]:
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    found = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "mobile_sam", "pretraining"])
def test_matrices_decay_and_nothing_else(name: str) -> None:
    """One rule for both stages: no norm, bias, token, position embedding or table of vectors has weight decay."""
    if name == "pretraining":
        model: nn.Module = SAMI(ViT("tiny", image_size=32, pos_embed="learned"), CrossAttentionDecoder, 8)
    else:
        model = build_sam(name)
    found = decays(model)
    for parameter, decay in found.items():
        last = parameter.rpartition(".")[2]
        plain = last in ("cls_token", "mask_token", "pos_embed", "bias", "attention_biases") or "norm" in parameter
        assert not (plain and decay), parameter
    tables = [f"{n}.weight" for n, module in model.named_modules() if isinstance(module, nn.Embedding)]
    assert not any(found[table] for table in tables)
    matrices = [n for n, p in model.named_parameters() if isinstance(p, torch.Tensor) and n.endswith("fc1.weight")]
    assert matrices and all(found[n] for n in matrices)
