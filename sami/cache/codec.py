"""How targets are stored: in 32, 16 or 8 bits, all channels or their principal components.

B images   N tokens   E target width   C stored channels
"""

import torch
from torch import Tensor, nn

from sami.cache.quantize import dequantize, quantize
from sami.ops.resize import area_crop

STORAGES = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes per number


class TargetCodec(nn.Module):
    """Targets to what is stored of them, and back.

    Args:
        storage: fp32, fp16, or int8 with a center and scale for each channel of each image.
        width: E.
        basis: mean [E] and components [E, C] of `fit_pca`; None stores all channels as they are.

    Raises:
        ValueError: unknown `storage`.
    """

    def __init__(self, storage: str, width: int, basis: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        if storage not in STORAGES:
            raise ValueError(f"cache.storage={storage!r}: choose {', '.join(STORAGES)}")
        self.storage, self.width = storage, width
        mean, components = basis or (None, None)
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    @property
    def channels(self) -> int:
        """C."""
        return self.width if self.components is None else self.components.shape[1]

    def encode(self, target: Tensor) -> dict[str, Tensor]:
        """[B, N, E] -> values [B, N, C] and, for int8, center and scale [B, C]."""
        with torch.autocast(target.device.type, enabled=False):
            target = target.float()
            if self.components is not None:
                target = (target - self.mean) @ self.components
            if self.storage != "int8":
                return {"values": target.half() if self.storage == "fp16" else target}
            codes, center, scale = quantize(target)
            return {"values": codes, "center": center, "scale": scale}

    def decode(self, stored: dict[str, Tensor]) -> Tensor:
        """What `encode` gave -> float32 [B, N, E]."""
        values = stored["values"]
        with torch.autocast(values.device.type, enabled=False):
            if self.storage == "int8":
                values = dequantize(values, stored["center"], stored["scale"])
            if self.components is None:
                return values.float()
            return values.float() @ self.components.T + self.mean

    def decode_crop(
        self,
        stored: dict[str, Tensor],
        regions: Tensor,
        flip: Tensor,
        *,
        given: tuple[int, int],
        wanted: tuple[int, int],
    ) -> Tensor:
        """What `encode` gave of whole maps -> float32 [B, wanted tokens, E], one region of each map.

        Decoding is affine in each channel, so the mean over an area is taken first, of the fewest numbers.

        Args:
            stored: values [B, N, C], N tokens of a grid of `given` (h, w), and, for int8, center and scale.
            regions, flip: [B, 4] and [B], see `area_crop`.
            wanted: (gh, gw).
        """
        maps = stored["values"].transpose(1, 2).unflatten(2, given)  # [B, C, h, w]
        values = area_crop(maps, regions, wanted, flip).flatten(2).transpose(1, 2)  # [B, gh * gw, C]
        return self.decode({**stored, "values": values})
