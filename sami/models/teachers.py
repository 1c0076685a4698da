"""Teachers: frozen networks (SAM, any timm model, a whole segmenter) whose features the student learns to predict.

Teachers without weights are in `pixel_teachers`; targets computed before come from `sami.cache.teacher`.

B images   H W pixels   p the student's patch size   gh gw the student's token grid, N = gh*gw   h w the teacher's grid
E teacher width
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from sami.models.build import build_sam
from sami.models.image_encoders.neck import EMBEDDING_WIDTH
from sami.models.image_encoders.sam import SAM_PATCH_SIZE, fit_position_tables, load_sam
from sami.models.sam import Sam
from sami.models.timm_models import load_timm
from sami.models.weights import build_random, weights_digest
from sami.ops.area_resize import area_resize

INPUT_MEAN, INPUT_STD = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)


class Statistics(NamedTuple):
    """Per channel of the targets."""

    mean: Tensor  # [E]
    variance: Tensor  # [E]
    num_tokens: int  # they were measured on


class Teacher(nn.Module):
    """What turns a batch into targets [B, N, E] on the student's grid, in image order. It never learns.

    Subclasses set `width`, E, and implement `target`. They may know the `statistics` of their targets beforehand.

    Args:
        patch_size: p, the student's: the grid is (H / p, W / p).
    """

    width: int
    statistics: Statistics | None = None

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode: the trainer that holds us switches its whole tree to training."""
        return super().train(False)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the targets may. Read once: ViT-H has 2.5 GB, and a teacher never learns."""
        return weights_digest(self)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """batch["image"] [B, 3, H, W] -> [B, N, E], tokens in image order."""
        H, W = batch["image"].shape[-2:]
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(f"an image of {H}x{W} pixels is not a whole number of patches of {self.patch_size} pixels")
        return self.target(batch["image"])

    def target(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], normalised with ImageNet's mean and deviation (they are SAM's) -> [B, N, E]."""
        raise NotImplementedError

    def to_tokens(self, features: Tensor, image: Tensor) -> Tensor:
        """[B, E, h, w] -> [B, N, E] on the student's grid: area means, or bilinear where the map must grow."""
        (h, w), (H, W) = features.shape[-2:], image.shape[-2:]
        gh, gw = H // self.patch_size, W // self.patch_size
        if gh > h or gw > w:
            features = F.interpolate(features.float(), (gh, gw), mode="bilinear").to(features.dtype)
        return area_resize(features, (gh, gw)).flatten(2).transpose(1, 2)


class SamTeacher(Teacher):
    """f^sam of arXiv:2312.00863, Sec. 3.2: SAM's image encoder (arXiv:2304.02643), as timm's samvit.

    The paper says "SAM ViT-H image encoder" and leaves the rest open; the defaults and their reasons:

    - `input_size=None`, the student's crop as it is: Eq. (1) gives teacher and student the same N tokens. SAM was
      trained at 1024: `input_size=1024` enlarges the crop and averages the 64x64 map over the area of each student
      token, at about 25 times the cost.
    - `layer="neck"`: 256 channels, "the output of SAM image encoder" as SAM's own code returns it. "last_block" is
      the map before the neck, which the only public re-implementation chose.
    - Targets are not normalised: the text mentions none, and the neck ends in a LayerNorm.

    Args:
        name: sam_vit_b, sam_vit_l or sam_vit_h.
        weights: "hub" (timm's download), the path of a file with Meta's or timm's names, or "random" (always the
            same numbers; for tests and benchmarks).
        input_size: longest side in pixels that the teacher sees, bilinear as in SAM's preprocessing. None: as given.
        layer: "neck" or "last_block" (E = 768, 1024 or 1280).
        patch_size: the student's.
        max_batch: images that pass the network at once; more of them pass one group after another.

    Raises:
        ValueError: unknown `name` or `layer`, `input_size` is not a multiple of 16, or the file is missing, damaged
            or of another model; in `forward`, the teacher's image is not a whole number of patches of 16.
        ConnectionError: the download failed.
    """

    network: Any  # timm's samvit

    def __init__(
        self,
        name: str = "sam_vit_h",
        weights: str = "hub",
        input_size: int | None = None,
        layer: str = "neck",
        patch_size: int = 16,
        max_batch: int = 64,
    ) -> None:
        super().__init__(patch_size)
        if layer not in ("neck", "last_block"):
            raise ValueError(f"layer={layer!r}: choose neck or last_block")
        if input_size is not None and (input_size <= 0 or input_size % SAM_PATCH_SIZE):
            raise ValueError(f"input_size={input_size}: give a multiple of {SAM_PATCH_SIZE} pixels, or null")
        self.input_size, self.max_batch = input_size, max_batch
        self.network = load_sam(name, weights).eval().requires_grad_(False)
        if layer == "last_block":
            self.network.neck = nn.Identity()
        self.width = self.network.embed_dim if layer == "last_block" else self.network.num_features
        self.position_tables: dict[tuple, dict[str, Tensor]] = {}

    def target(self, image: Tensor) -> Tensor:
        return torch.cat([self.target_at_once(part) for part in image.split(self.max_batch)])

    def target_at_once(self, image: Tensor) -> Tensor:
        """`target` of at most `max_batch` images."""
        view = image if self.input_size is None else resize_longest(image, self.input_size, multiple=SAM_PATCH_SIZE)
        H, W = view.shape[-2:]
        if H % SAM_PATCH_SIZE or W % SAM_PATCH_SIZE:
            advice = f"set input_size to a multiple of {SAM_PATCH_SIZE}, the side of its patches"
            raise ValueError(f"SAM cannot take an image of {H}x{W} pixels: {advice}")
        features = torch.func.functional_call(self.network, self.tables_for(view), (view,))  # [B, E, h, w]
        return self.to_tokens(features, image)

    def tables_for(self, image: Tensor) -> dict[str, Tensor]:
        """The position tables for this image's grid. timm would resize those of 1024 pixels in every forward."""
        table = self.network.pos_embed
        H, W = image.shape[-2:]
        key = (H, W, table.device, table.dtype)
        if key not in self.position_tables:
            self.position_tables[key] = fit_position_tables(self.network, (H // SAM_PATCH_SIZE, W // SAM_PATCH_SIZE))
        return self.position_tables[key]


class TimmTeacher(Teacher):
    """The last feature map of any timm model: CLIP and DINOv2 as in the ablation of arXiv:2312.00863, Sec. 4.4 (the
    paper says "CLIP encoder" and not which), or a convnet. The model's final norm is applied, class and register
    tokens are dropped, and the image is brought to the model's own mean and standard deviation.

    Args:
        name: timm's, with or without the tag of its weights: vit_base_patch16_clip_224.openai.
        weights: "hub" (timm's download), the path of a file with timm's names, or "random" (always the same numbers).
        input_size: longest side in pixels that the teacher sees. None: the crop as it is; models that take one size
            only, and patches that do not divide the crop, need it.
        patch_size: the student's.

    Raises:
        ValueError: unknown `name`, or the file is missing, damaged or of another model; in `forward`, the model
            cannot take an image of this size.
        ConnectionError: the download failed.
    """

    network: Any  # timm's
    scale: Tensor  # [3, 1, 1]
    shift: Tensor

    def __init__(self, name: str, weights: str = "hub", input_size: int | None = None, patch_size: int = 16) -> None:
        super().__init__(patch_size)
        self.name, self.input_size = name, input_size
        self.network = load_timm(name, weights, input_size).eval().requires_grad_(False)
        last = self.network.feature_info[-1]
        self.width = last.get("num_chs_norm", last["num_chs"])
        mean, std = (torch.tensor(self.network.pretrained_cfg[key]) for key in ("mean", "std"))
        # (image * INPUT_STD + INPUT_MEAN - mean) / std
        self.register_buffer("scale", (INPUT_STD / std).reshape(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((INPUT_MEAN - mean) / std).reshape(3, 1, 1), persistent=False)

    def target(self, image: Tensor) -> Tensor:
        view = image if self.input_size is None else resize_longest(image, self.input_size)
        view = view * self.scale + self.shift
        try:
            (features,) = self.network.forward_intermediates(view, indices=1, norm=True, intermediates_only=True)
        except AssertionError as error:  # timm's way to refuse a size
            H, W = view.shape[-2:]
            raise ValueError(f"{self.name} cannot take an image of {H}x{W} pixels ({error}): set input_size") from error
        return self.to_tokens(features, image)  # features [B, E, h, w], whatever the model's own layout


class SegmenterTeacher(Teacher):
    """A segmenter's image encoder as the teacher of another one's, E = 256; its decoder is there too, in `sam`.

    Args:
        name: see `build_sam`.
        checkpoint: a released file, or `segmenter.safetensors` of a run. None: always the same random weights.
        decoder: "sam" or "efficient_sam", see `Sam`.
        patch_size: the student's.
    """

    width = EMBEDDING_WIDTH
    sam: Sam

    def __init__(self, name: str, checkpoint: str | None, decoder: str = "sam", patch_size: int = 16) -> None:
        super().__init__(patch_size)
        announce = name if checkpoint is None else None
        sam = build_random(lambda: build_sam(name, checkpoint, decoder=decoder), announce=announce)
        self.sam, self.trained = sam.requires_grad_(False), checkpoint is not None

    def target(self, image: Tensor) -> Tensor:
        return self.to_tokens(self.sam.embed(image), image)


def resize_longest(image: Tensor, longest: int, *, multiple: int = 1) -> Tensor:
    """[B, 3, H, W] -> the image with its longest side at `longest` pixels, each side a multiple of `multiple`."""
    H, W = image.shape[-2:]
    size = [max(round(side * longest / max(H, W) / multiple), 1) * multiple for side in (H, W)]
    return F.interpolate(image, size, mode="bilinear", antialias=True)  # antialias acts where the image shrinks only
