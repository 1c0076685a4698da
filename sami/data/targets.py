"""Interfaces of cached targets: what data sets call, and `sami.cache` implements."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sami.data.crops import RandomCrops
from sami.data.sources.base import Images


class CropViews(NamedTuple):
    """The crops that a run shows its student, and the tokens of one."""

    crops: RandomCrops
    num_views: int | None  # fixed crops of each image; None for all that a cache holds
    image_size: int
    grid: tuple[int, int]


class TargetReader(Protocol):
    """The targets of one set of images: records by image and view, and what a batch's row holds of them."""

    @property
    def holds_maps(self) -> bool: ...  # of whole images, else targets of views

    @property
    def num_views(self) -> int: ...  # records of each image

    def read_for(self, image: bytes, unit: int, row: int, view: int) -> Any:
        """A record for the very bytes of an image file. Raises BrokenImage where there is none."""

    def entries(self, record: Any, box: Sequence[int], *, flip: bool) -> dict[str, Tensor]:
        """A record as entries of a row: of a map, what is in a box (top, left, height, width) of the image."""
        ...

    def whole_entries(self, record: Any) -> dict[str, Tensor]: ...  # of a map as it is, padding and all

    def blank(self) -> dict[str, Tensor]: ...  # entries of an image that is not there


class TargetCache(Protocol):
    """Targets of a run's images, not yet opened: of training and of validation, None where nothing is known of it."""

    def open_crops(
        self, train_source: Images, val_source: Images | None, views: CropViews
    ) -> tuple[TargetReader, TargetReader | None]: ...

    def open_maps(
        self, train_source: Images, val_sources: Mapping[str, Images], *, resize_mode: str
    ) -> tuple[TargetReader, Mapping[str, TargetReader | None]]: ...
