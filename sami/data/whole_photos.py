"""The data module of distillation: whole photos in the model's square, with a teacher's maps of them if there are any.

B photos   S pixels per side of the model frame
"""

import warnings
from pathlib import Path
from typing import Any

from sami.cache.reader import SAME_IN_SPLITS, CacheReader
from sami.data.mask_sources import MaskSource, Sa1bShards, open_mask_source
from sami.data.mask_views import MaskFrame
from sami.data.photos import open_source
from sami.data.sources import ShardSource, Source
from sami.data.square_photos import SquareData, from_scenes
from sami.data.tar_index import load_index
from sami.data.whole_views import EvalWholeViews, TrainWholeViews


class WholePhotoData(SquareData):
    """Whole photos, in a stream of positions, see `SquareData`.

    Args:
        train: photos: brace pattern of shards, list of such, or a folder of images. Masks beside them are not read.
        val: likewise, or a set with masks, see `open_val_source`; or several by name ({"coco": ..., "mine": ...}).
            None: no validation.
        image_size: S.
        preprocess: "pad" or "squash", see `sami.ops.frames`; the teacher's.
        num_prompts: places of each training photo at which masks are asked for, where the method compares masks.
        num_val_masks: of a validation photo, at most; photos without masks are asked at as many places.
        seed: of order and prompts.
        num_workers: loading processes per rank; 0 loads in the training process.
        shuffle_window: shards that are shuffled among themselves, see `ShuffledOrder`.
        cache: folder of maps that were written for these photos (`cache.kind=maps`), or None.
        val_batch_size: photos per validation batch and rank.

    Raises:
        ValueError: see the sources; a number that makes no sense; or the cache holds no maps, or those of other photos.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        *,
        image_size: int,
        preprocess: str,
        num_prompts: int,
        num_val_masks: int,
        seed: int,
        num_workers: int,
        shuffle_window: int,
        cache: str | None,
        val_batch_size: int,
    ) -> None:
        if min(num_prompts, num_val_masks, val_batch_size, image_size) < 1:
            raise ValueError(
                f"image_size={image_size}, num_prompts={num_prompts}, num_val_masks={num_val_masks}, val_batch_size="
                f"{val_batch_size}: give positive numbers"
            )
        stream = {"num_workers": num_workers, "shuffle_window": shuffle_window, "val_batch_size": val_batch_size}
        frame = MaskFrame(image_size, image_size, preprocess, max_area=1.0)
        super().__init__(open_source(train), val, open_val_source, frame=frame, seed=seed, **stream)
        self.num_prompts, self.num_val_masks = num_prompts, num_val_masks
        self.train_cache = self.open_cache(Path(cache, "train"), self.train_source) if cache else None
        self.val_caches = {name: self.open_val_cache(cache, name) for name in self.val_sources} if cache else {}

    def open_cache(self, folder: Path, source: Source) -> CacheReader:
        """The maps of one split.

        Raises:
            ValueError: see `CacheReader`; or they are no maps, or of photos that were padded where ours are not.
        """
        reader = CacheReader(folder, source)
        if not reader.holds_maps or self.frame.preprocess != "pad":
            raise ValueError(
                f"the cache {folder} holds {reader.manifest['kind']}, and this run has preprocess="
                f"{self.frame.preprocess}: distillation takes a cache of cache.kind=maps, whose photos are padded"
            )
        return reader

    def open_val_cache(self, cache: str, name: str) -> CacheReader | None:
        """The maps of a validation set; None where the cache has none of it, and nothing is said of the teacher."""
        folder = Path(cache, "val")
        if len(self.val_sources) > 1 or not (folder / "manifest.json").exists():
            why = (
                "of which of several sets it holds maps is not known" if len(self.val_sources) > 1 else "it has no val"
            )
            warnings.warn(
                f"the cache {cache} tells nothing of validation set {name!r} ({why}): only true masks are compared",
                stacklevel=2,
            )
            return None
        reader = self.open_cache(folder, self.val_sources[name])
        reader.check({entry: self.train_cache.manifest[entry] for entry in SAME_IN_SPLITS})
        return reader

    def knows_teacher(self, name: str) -> bool:
        """Whether a teacher can say something of this validation set: a cache may hold nothing of it."""
        return self.train_cache is None or self.val_caches[name] is not None

    def train_views(self) -> TrainWholeViews:
        """The training photos by position."""
        how = {"seed": self.seed, "frame": self.frame, "num_prompts": self.num_prompts, "cache": self.train_cache}
        return TrainWholeViews(self.train_source, self.train_order(), **how)

    def val_views(self, name: str) -> EvalWholeViews:
        """The photos of one validation set by number."""
        how = {"seed": self.seed, "frame": self.frame, "num_masks": self.num_val_masks}
        return EvalWholeViews(self.val_sources[name], **how, cache=self.val_caches.get(name))


def open_val_source(where: Any) -> MaskSource | Source:
    """Photos, with their masks where there are any: whatever `open_mask_source` or `open_source` takes.

    Raises:
        ValueError: see there.
    """
    if isinstance(where, str) and Path(where).is_dir():
        return open_mask_source(where) if next(Path(where).rglob("*.json"), None) else open_source(where)
    if ".tar" in str(where):
        shards = ShardSource(where)
        masks = any("json" in load_index(path).extensions for path in shards.paths)
        return Sa1bShards(where) if masks else shards
    return open_mask_source(where)


def whole_sample(folder: str, *, num_train: int, num_val: int, **options: Any) -> WholePhotoData:
    """`WholePhotoData` of the built-in scenes, which are drawn into `folder` first."""
    return from_scenes(WholePhotoData, folder, num_train=num_train, num_val=num_val, **options)
