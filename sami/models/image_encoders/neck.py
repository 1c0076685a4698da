"""ImageEncoder, a backbone and SAM's neck with the methods of timm's backbones (`forward_intermediates`).

B images   H W pixels   C channels   h w a backbone's map   gh gw grid of 16-pixel patches
"""

from collections.abc import Iterator, Sequence
from typing import Any

from timm.layers import LayerNorm2d  # pyright: ignore[reportPrivateImportUsage] # timm has no __all__
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EMBEDDING_WIDTH = 256


def build_neck(width: int) -> nn.Sequential:
    """[B, width, gh, gw] -> [B, 256, gh, gw]: the neck of SAM's image encoder, as all its successors kept it."""
    return nn.Sequential(
        nn.Conv2d(width, EMBEDDING_WIDTH, 1, bias=False),
        LayerNorm2d(EMBEDDING_WIDTH),
        nn.Conv2d(EMBEDDING_WIDTH, EMBEDDING_WIDTH, 3, padding=1, bias=False),
        LayerNorm2d(EMBEDDING_WIDTH),
    )


class ImageEncoder(nn.Module):
    """Backbone and neck, [B, 3, H, W] -> [B, 256, gh, gw], with the methods of timm's backbones.

    Subclasses set `neck` and `feature_info`, and implement `feature_maps`.

    Attributes:
        feature_info: of each of the backbone's maps "num_chs" (C), "reduction" (pixels per cell) and "module".
    """

    neck: nn.Module
    feature_info: list[dict[str, Any]]
    grad_checkpointing = False
    fused = False  # see `fuse_branches`

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes activations a second time in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def run(self, module: nn.Module, features: Tensor) -> Tensor:
        """The module's output, its activations kept or not, see `set_grad_checkpointing`."""
        if self.grad_checkpointing and self.training:
            return checkpoint(module, features, use_reentrant=False)
        return module(features)

    def feature_maps(self, image: Tensor) -> Iterator[Tensor]:
        """[B, 3, H, W] -> the backbone's maps [B, C, h, w], one after the other, as in `feature_info`."""
        raise NotImplementedError

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """All of `feature_maps` -> [B, 256, gh, gw]."""
        return self.neck(maps[-1])

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256, gh, gw]."""
        for features in self.feature_maps(image):
            last = features  # the others are not kept
        return self.finish([last])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] -> some of the backbone's maps [B, C, h, w]; unless `intermediates_only`, the embedding first.

        Arguments as of timm's models: `indices` of `feature_info`, a number for so many of the last, None for all.
        `norm` changes nothing, these backbones have no final norm. `stop_early` needs `intermediates_only`.
        """
        if output_fmt != "NCHW" or (stop_early and not intermediates_only):
            raise ValueError(f"output_fmt={output_fmt}: give NCHW, and stop_early only with intermediates_only")
        numbers = range(len(self.feature_info))
        if isinstance(indices, int):
            take = set(numbers[-indices:])
        else:
            take = {numbers[i] for i in (numbers if indices is None else indices)}
        maps = []
        for features in self.feature_maps(x):
            maps.append(features)
            if stop_early and len(maps) > max(take):
                break
        taken = [maps[number] for number in sorted(take)]
        return taken if intermediates_only else (self.finish(maps), taken)
