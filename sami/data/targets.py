"""What a data set asks of targets that were computed before; `sami.cache` has them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from sami.data.crops import RandomCrops
from sami.data.sources.base import MaskSource, Source


class TargetReader(Protocol):
    """The targets of one set of images: records by image and view, and what a batch's row holds of them."""

    @property
    def holds_maps(self) -> bool:
        """Whether records are maps of whole images, else targets of views."""
        ...

    @property
    def num_views(self) -> int:
        """Records of each image."""
        ...

    def read_for(self, image: bytes, unit: int, row: int, view: int) -> Any:
        """A record for the very bytes of an image file. Raises BrokenImage where there is none."""
        ...

    def entries(self, record: Any, box: Sequence[int], *, flip: bool) -> dict[str, Tensor]:
        """A record as entries of a row: of a map, what is in a box (top, left, height, width) of the image."""
        ...

    def whole_entries(self, record: Any) -> dict[str, Tensor]:
        """A map as entries of a row, padding and all."""
        ...

    def blank(self) -> dict[str, Tensor]:
        """Entries of an image that is not there."""
        ...


class TargetCache(Protocol):
    """Targets of a run's images, not yet opened."""

    def open_crops(
        self,
        train_source: Source,
        val_source: Source | None,
        *,
        crops: RandomCrops,
        num_views: int | None,
        image_size: int,
        grid: list[int],
    ) -> tuple[TargetReader, TargetReader | None]:
        """The targets of training crops and of validation, for `num_views` fixed crops of each image, or all."""
        ...

    def open_maps(
        self, train_source: Source | MaskSource, val_sources: Mapping[str, Source | MaskSource], *, resize_mode: str
    ) -> tuple[TargetReader, dict[str, TargetReader | None]]:
        """The maps of whole images; None for validation sets that nothing is known of."""
        ...
