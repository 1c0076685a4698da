"""The data module of every stage that learns from photos alone."""

import fcntl
from pathlib import Path
from typing import Any

import torch

from sami.cache.reader import SAME_IN_SPLITS, CacheReader
from sami.cache.views import describe_center, describe_crops
from sami.data.sample import write_sample
from sami.data.sources import FolderSource, ShardSource, Source
from sami.data.stream import StreamData, ViewLoader
from sami.data.transforms import RandomCrops, normalize
from sami.data.views import EvalViews, TrainViews


class PhotoData(StreamData):
    """Photos from tar shards or folders, in an order that depends on seed and position alone, see `StreamData`.

    Args:
        train: brace pattern of shards, list of such, or a folder of images.
        val: likewise, for validation; with labels (`.cls`, or one folder per class) k-NN accuracy is reported. None:
            no validation.
        image_size: pixels per side of a view.
        patch_size: of the student; gives the number of tokens.
        seed: of order, crops, flips and masks.
        num_workers: loading processes per rank; 0 loads in the training process.
        shuffle_window: shards that are shuffled among themselves, see `ShuffledOrder`.
        scale, ratio, flip: of the random crop, see `RandomCrops`.
        num_views: None for a fresh view each time, else see `TrainViews`.
        cache: folder of targets that were written for these photos, or None.
        val_batch_size: photos per validation batch and rank.

    Raises:
        ValueError: see `ShardSource` and `FolderSource`; `image_size` is not a multiple of `patch_size`; or the cache
            cannot be used for this run, see `open_caches`.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None,
        *,
        image_size: int,
        patch_size: int,
        seed: int,
        num_workers: int,
        shuffle_window: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: float,
        num_views: int | None,
        cache: str | None,
        val_batch_size: int,
    ) -> None:
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
        stream = {"num_workers": num_workers, "shuffle_window": shuffle_window, "val_batch_size": val_batch_size}
        super().__init__(open_source(train), seed=seed, **stream)
        self.val_source = open_source(val) if val else None
        self.view = {"side": image_size, "num_tokens": (image_size // patch_size) ** 2, "seed": seed}
        self.crops, self.num_views = RandomCrops(tuple(scale), tuple(ratio), flip), num_views
        if num_views is not None and num_views < 1:
            raise ValueError(f"data.num_views={num_views}: give a number from 1, or null for a fresh view each time")
        self.train_cache, self.val_cache = self.open_caches(Path(cache), patch_size) if cache else (None, None)

    def open_caches(self, folder: Path, patch_size: int) -> tuple[CacheReader, CacheReader | None]:
        """The targets of training and of validation.

        Raises:
            ValueError: see `CacheReader`; the views of the cache are not those of this run, or it has none for
                validation, or `num_views` asks for others than it holds.
        """
        train = CacheReader(folder / "train", self.train_source)
        val = CacheReader(folder / "val", self.val_source) if self.val_source else None
        if val:  # one codec decodes both
            val.check({name: train.manifest[name] for name in SAME_IN_SPLITS})
        if not train.holds_maps:
            side = self.view["side"]
            views = {"image_size": side, "grid": [side // patch_size] * 2}
            train.check({**views, "transform": describe_crops(self.crops, seed=train.manifest["transform"]["seed"])})
            if val:
                val.check({**views, "transform": describe_center()})
            if (self.num_views or 1) > train.num_views:
                raise ValueError(f"data.num_views={self.num_views}, but the cache {folder} holds {train.num_views}")
        return train, val

    @property
    def views_per_photo(self) -> int | None:
        """Fixed views that take turns in the epochs of training; None if each is fresh."""
        fixed = self.train_cache is not None and not self.train_cache.holds_maps
        return self.num_views or (self.train_cache.num_views if fixed else None)

    @property
    def validates(self) -> bool:
        """Whether there are photos to validate on."""
        return self.val_source is not None

    def train_views(self) -> TrainViews:
        """The training views by position."""
        kind = {"crops": self.crops, "num_views": self.views_per_photo, "cache": self.train_cache}
        return TrainViews(self.train_source, self.train_order(), **self.view, **kind)

    def eval_views(self) -> EvalViews:
        """The validation views by photo number."""
        return EvalViews(self.val_source, **self.view, cache=self.val_cache)

    def val_dataloader(self) -> ViewLoader | list:
        """Every validation photo once, dealt out to the ranks."""
        if self.val_source is None:
            return []
        return self.eval_loader(self.eval_views(), sum(self.val_source.counts))

    def spread_val_batch(self, size: int) -> dict[str, Any]:
        """A normalised batch of validation photos at equal distances, to look at."""
        rows = torch.linspace(0, sum(self.val_source.counts) - 1, size).long().unique().tolist()
        return self.on_after_batch_transfer(self.eval_views().__getitems__(rows), 0)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pixels travel as bytes and are normalised where they are used."""
        return {**batch, "image": normalize(batch["image"])}  # [B, 3, S, S] float


def open_source(where: str | list[str]) -> Source:
    """A folder of images, or shards.

    Raises:
        ValueError: see `ShardSource` and `FolderSource`.
    """
    if isinstance(where, str) and Path(where).is_dir():
        return FolderSource(where)
    return ShardSource(where)


def image_folder(root: str, val: str | None, **options: Any) -> PhotoData:
    """`PhotoData` of a plain folder of images.

    Raises:
        ValueError: see `FolderSource`.
    """
    if not Path(root).is_dir():
        raise ValueError(f"data.root={root} is not a folder")
    return PhotoData(root, val, shuffle_window=1, **options)


def sample(folder: str, *, num_train: int, num_val: int, seed: int, **options: Any) -> PhotoData:
    """`PhotoData` of the built-in scenes, which are drawn into `folder` first."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one rank draws, the others wait for it
        write_sample(Path(folder), num_train=num_train, num_val=num_val)
    train, val = (sorted(map(str, Path(folder).glob(f"{split}-*.tar"))) for split in ("train", "val"))
    return PhotoData(train, val, seed=seed, **options)
