"""A cache of a teacher's targets, opened for the images of a run."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from sami.cache.manifest import MANIFEST
from sami.cache.reader import CacheReader
from sami.cache.views import describe_center, describe_crops
from sami.data.sources.base import Images
from sami.data.targets import CropViews

SAME_IN_SPLITS = ("kind", "teacher", "teacher_weights", "precision", "width", "storage", "channels", "basis")


class Cache:
    """A folder that `python -m sami.cache write` filled, with the splits train and val.

    Args:
        folder: of both splits.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def open_crops(
        self, train_source: Images, val_source: Images | None, views: CropViews
    ) -> tuple[CacheReader, CacheReader | None]:
        """The targets of training crops and of validation; maps suit any crops.

        Raises:
            ValueError: see `CacheReader`; the views of the cache are not those of this run, or it has none for
                validation, or `num_views` asks for more than it holds.
        """
        train = CacheReader(self.folder / "train", train_source)
        val = CacheReader(self.folder / "val", val_source) if val_source else None
        if val:
            check_same_teacher(val, train)
        if not train.holds_maps:
            seen = {"image_size": views.image_size, "grid": list(views.grid)}
            train.check({**seen, "transform": describe_crops(views.crops, seed=train.manifest["transform"]["seed"])})
            if val:
                val.check({**seen, "transform": describe_center()})
            if (views.num_views or 1) > train.num_views:
                raise ValueError(f"num_views={views.num_views}, but the cache {self.folder} holds {train.num_views}")
        return train, val

    def open_maps(
        self, train_source: Images, val_sources: Mapping[str, Images], *, resize_mode: str
    ) -> tuple[CacheReader, dict[str, CacheReader | None]]:
        """The maps of whole images; None for validation sets that it has no maps of, and then a warning says so.

        Raises:
            ValueError: see `CacheReader`; or they are no maps, or of images that were padded where ours are not.
        """
        train, val = self.open_split("train", train_source, resize_mode), {}
        for name, source in val_sources.items():
            many = len(val_sources) > 1
            if many or not (self.folder / "val" / MANIFEST).exists():
                why = "of which of several sets it holds maps is not known" if many else "it has no val"
                said = f"tells nothing of validation set {name!r} ({why}): only true masks are compared"
                warnings.warn(f"the cache {self.folder} {said}", stacklevel=2)
                val[name] = None
            else:
                val[name] = reader = self.open_split("val", source, resize_mode)
                check_same_teacher(reader, train)
        return train, val

    def open_split(self, split: str, source: Images, resize_mode: str) -> CacheReader:
        """The maps of one split, see `open_maps`."""
        reader = CacheReader(self.folder / split, source)
        if not reader.holds_maps or resize_mode != "pad":
            raise ValueError(
                f"the cache {reader.folder} holds {reader.manifest['kind']}, and this run has resize_mode="
                f"{resize_mode}: distillation takes a cache of kind=maps, whose images are padded"
            )
        return reader


def check_same_teacher(val: CacheReader, train: CacheReader) -> None:
    """Raises ValueError where one codec cannot decode both."""
    val.check({name: train.manifest[name] for name in SAME_IN_SPLITS})
