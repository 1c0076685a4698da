"""Any timm backbone as the image encoder of a segmenter.

B images   H W pixels   gh gw grid of 16-pixel patches   C channels
"""

import difflib
import inspect

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sami.models.neck import build_neck

STRIDE = 16  # pixels per cell of what SAM's decoder takes
STRIDES = (8, 16, 32)  # of the maps that are taken


class TimmEncoder(nn.Module):
    """A backbone's maps at 16 and, where it has them, 8 and 32 pixels, side by side, and SAM's neck.

    A network that goes on to 32 pixels has most of what it knows there, and at 8 it still knows where in a cell an edge
    lies. The coarser map is enlarged (bilinear), four cells of the finer one become one with all their channels, each
    is brought to mean 0 and deviation 1 over the image, since a backbone's maps differ by orders of magnitude, and the
    neck's first 1x1 convolution adds them. The image comes with ImageNet's mean and deviation, whatever the backbone
    was made for.

    Args:
        name: timm's, of a model with `features_only`.
        image_size: pixels per side, for models of one size.
        drop_path: as timm's models take it.

    Raises:
        ValueError: no timm model of this name, or none that gives a map at 16 pixels.
    """

    def __init__(self, name: str, *, image_size: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name = name
        if not timm.is_model(name):
            close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), cutoff=0.5)
            raise ValueError(f"name=timm/{name} is no timm model. Close to it: {', '.join(close) or 'none'}")
        with torch.device("meta"):
            takes = inspect.signature(type(timm.create_model(name))).parameters
        options: dict[str, object] = {"drop_path_rate": drop_path} if drop_path else {}
        if "dynamic_img_size" in takes:
            options["dynamic_img_size"] = True
        elif "img_size" in takes:
            options["img_size"] = image_size
        try:
            self.backbone = timm.create_model(name, features_only=True, **options)
            strides, widths = self.backbone.feature_info.reduction(), self.backbone.feature_info.channels()
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(f"name=timm/{name} cannot be built without its classifier: {error}") from error
        self.taken = {k: max(i for i, s in enumerate(strides) if s == k) for k in STRIDES if k in strides}
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        if STRIDE not in strides:
            raise ValueError(f"name=timm/{name} has maps at {strides} pixels per cell, needed {STRIDE}")
        self.neck = build_neck(sum(widths[i] * max(STRIDE // k, 1) ** 2 for k, i in self.taken.items()))

    @property
    def checkpoint(self) -> bool:
        """In training, recompute activations in the backward pass instead of keeping them, where the model can."""
        return getattr(getattr(self.backbone, "model", self.backbone), "grad_checkpointing", False)

    @checkpoint.setter
    def checkpoint(self, on: bool) -> None:
        model = getattr(self.backbone, "model", self.backbone)  # timm wraps transformers once more
        if hasattr(model, "set_grad_checkpointing"):
            model.set_grad_checkpointing(on)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw].

        Raises:
            ValueError: the image is not a whole number of patches.
        """
        H, W = image.shape[-2:]
        if H % STRIDE or W % STRIDE:
            raise ValueError(f"an image of {H}x{W} pixels is not a whole number of patches of {STRIDE} pixels")
        maps = self.backbone(image)
        taken = []
        for stride, number in self.taken.items():
            part = maps[number].permute(0, 3, 1, 2) if self.channels_last else maps[number]  # [B, C, H/s, W/s]
            part = F.group_norm(part, 1)
            if stride < STRIDE:
                taken.append(F.pixel_unshuffle(part, STRIDE // stride))
            else:
                taken.append(F.interpolate(part, (H // STRIDE, W // STRIDE), mode="bilinear"))
        return self.neck(torch.cat(taken, dim=1))
