"""timm's models by name: pretrained, from a file or at random, for images of any size where they can."""

import difflib
import inspect
from typing import Any

import timm
import torch
from torch import nn

from sami.models.weights import build_random, download, load_state_dict_file, load_strictly


def size_options(name: str, image_size: int | None) -> dict[str, Any]:
    """What `timm.create_model` has to be told for images of any size or, where it cannot, of `image_size`.

    Raises:
        ValueError: there is no timm model of this name, or no weights of this tag.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), cutoff=0.5)
        raise ValueError(f"name={name!r} is no timm model. Close to it: {', '.join(close) or 'none'}")
    try:
        with torch.device("meta"):
            takes = inspect.signature(type(timm.create_model(name))).parameters
    except RuntimeError as error:  # timm knows the model, not the tag behind the dot
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise ValueError(f"name={name!r}: {error} Weights on the hub: {tags}") from error
    if "dynamic_img_size" in takes:
        return {"dynamic_img_size": True}
    return {"img_size": image_size} if "img_size" in takes and image_size is not None else {}


def download_timm(name: str, *, option: str, **options: Any) -> nn.Module:
    """timm's pretrained model; see `download`."""
    return download(
        lambda: timm.create_model(name, pretrained=True, **options),
        advice=f"download model.safetensors from the page timm/{name} of huggingface.co",
        option=option,
    )


def load_timm(name: str, weights: str, input_size: int | None) -> nn.Module:
    """timm's model without a classifier; arguments and errors as of `TimmTeacher`."""
    options: dict[str, Any] = {"num_classes": 0, **size_options(name, input_size)}
    if weights == "hub":
        return download_timm(name, option="weights", **options)
    network: Any = build_random(
        lambda: timm.create_model(name, **options), announce=name if weights == "random" else None
    )
    if weights != "random":
        classifier = network.pretrained_cfg.get("classifier") or ()
        prefixes = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
        state_dict = load_state_dict_file(weights)
        state_dict = {key: value for key, value in state_dict.items() if not (prefixes and key.startswith(prefixes))}
        load_strictly(network, state_dict, source=f"weights={weights}")
    return network


def build_timm_maps(name: str, *, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """timm's model of this name as a list of feature maps, with random weights; ValueError where it gives none."""
    options: dict[str, Any] = size_options(name, image_size) | ({"drop_path_rate": drop_path} if drop_path else {})
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"name={name!r} cannot be built without its classifier: {error}") from error
