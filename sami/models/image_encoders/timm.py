"""Any timm backbone as the image encoder of a segmenter.

B images   H W pixels   gh gw grid of 16-pixel patches   C channels
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sami.models.image_encoders.neck import ImageEncoder, build_neck
from sami.models.timm_models import build_timm_maps

STRIDE = 16  # pixels per cell of what SAM's decoder takes
STRIDES = (8, 16, 32)  # of the maps that are taken


class TimmEncoder(ImageEncoder):
    """A backbone's maps at 16 and, where it has them, 8 and 32 pixels, side by side, and SAM's neck.

    A network that goes on to 32 pixels has most of what it knows there, and at 8 it still knows where in a cell an edge
    lies. The coarser map is enlarged (bilinear), four cells of the finer one become one with all their channels, each
    is brought to mean 0 and deviation 1 over the image, since a backbone's maps differ by orders of magnitude, and the
    neck's first 1x1 convolution adds them. The image comes with ImageNet's mean and deviation, whatever the backbone
    was made for.

    Args:
        name, drop_path: timm's, of a model with `features_only`.
        image_size: pixels per side, for models of one size.

    Raises:
        ValueError: no timm model of this name, or none that gives a map at 16 pixels.
    """

    def __init__(self, name: str, *, image_size: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.backbone: Any = build_timm_maps(name, image_size=image_size, drop_path=drop_path)  # timm's FeatureListNet
        self.feature_info = self.backbone.feature_info.get_dicts()
        strides = [info["reduction"] for info in self.feature_info]
        if STRIDE not in strides:
            raise ValueError(f"name={name!r} has maps at {strides} pixels per cell, needed {STRIDE}")
        self.taken = {k: max(i for i, s in enumerate(strides) if s == k) for k in STRIDES if k in strides}
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        widths = {k: self.feature_info[i]["num_chs"] for k, i in self.taken.items()}
        self.neck = build_neck(sum(width * max(STRIDE // k, 1) ** 2 for k, width in widths.items()))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes activations, where the model can."""
        model = getattr(self.backbone, "model", self.backbone)  # timm wraps transformers once more
        if hasattr(model, "set_grad_checkpointing"):
            model.set_grad_checkpointing(enable)

    def feature_maps(self, image: Tensor) -> Iterator[Tensor]:
        H, W = image.shape[-2:]
        if H % STRIDE or W % STRIDE:
            raise ValueError(f"an image of {H}x{W} pixels is not a whole number of patches of {STRIDE} pixels")
        for features in self.backbone(image):
            yield features.permute(0, 3, 1, 2) if self.channels_last else features

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[self.taken[STRIDE]].shape[2:]  # (gh, gw)
        parts = []
        for stride, number in self.taken.items():
            part = F.group_norm(maps[number], 1)
            if stride < STRIDE:
                parts.append(F.pixel_unshuffle(part, STRIDE // stride))
            else:
                parts.append(F.interpolate(part, size, mode="bilinear"))
        return self.neck(torch.cat(parts, dim=1))

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw]."""
        return self.finish(list(self.feature_maps(image)))
