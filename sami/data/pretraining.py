"""Data of masked pretraining: random crops of shuffled images, and the centre of each image of an evaluation.

B images   S pixels per side   N tokens
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sami.data.crops import CENTER, RandomCrops, center_crop_box, crop_and_resize
from sami.data.datasets import EvalSet, Index, Row, TrainSet
from sami.data.decode import image_size
from sami.data.loading import ImageData, check_positive
from sami.data.sampling import Stream, fixed_view
from sami.data.sources.base import NO_LABEL, EncodedImage, Source
from sami.data.sources.drawn_shards import draw_shards
from sami.data.sources.images import open_source
from sami.data.targets import CropViews, TargetCache, TargetReader

Box = tuple[int, int, int, int]  # (top, left, height, width) in pixels of the image


@dataclass
class RandomCrop:
    """A random crop of an image: `image` uint8 [3, S, S], `noise` float32 [N] (which decides the mask), `label` int64,
    and with a cache the entries of `TargetReader.entries`.

    Args:
        image_size: S.
        num_tokens: N.
        crops: how views are drawn.
        seed: of fixed views.
        num_views: None draws a fresh view each time. A number K fixes K views of each image, which take turns, an
            epoch each: what a cache with K views of this seed holds.
        cache: targets; one of views brings its first `num_views` views too, and needs the number.
    """

    image_size: int
    num_tokens: int
    crops: RandomCrops
    seed: int
    num_views: int | None = None
    cache: TargetReader | None = None

    def __call__(self, sample: EncodedImage, rng: np.random.Generator, index: Index) -> Row:
        box, flip, target = self.take_view(sample, rng, index)
        image = crop_and_resize(sample.image, box, self.image_size, flip=flip)
        return {"image": image, **noise_and_label(sample, rng, self.num_tokens), **target}

    def take_view(self, sample: EncodedImage, rng: np.random.Generator, index: Index) -> tuple[Box, bool, Row]:
        """Crop box and flip of an image in an epoch, and its target if there is a cache."""
        unit, row, epoch = index
        view = epoch % self.num_views if self.num_views else 0
        if self.cache and not self.cache.holds_maps:
            record = self.cache.read_for(sample.image, unit, row, view)
            box, flip = tuple(record["box"].tolist()), bool(record["flip"])
            return box, flip, self.cache.entries(record, box, flip=flip)
        size = image_size(sample.image)
        if self.num_views is None:
            box, flip = self.crops.draw(size, rng)
        else:
            box, flip = fixed_view(self.crops, self.seed, unit, row, view, size)
        if self.cache is None:
            return box, flip, {}
        return box, flip, self.cache.entries(self.cache.read_for(sample.image, unit, row, 0), box, flip=flip)


@dataclass
class CenterCrop:
    """The centre of an image, with the entries of `RandomCrop`, whose arguments these are."""

    image_size: int
    num_tokens: int
    cache: TargetReader | None = None

    def __call__(self, sample: EncodedImage, rng: np.random.Generator, index: Index) -> Row:
        box, target = center_crop_box(image_size(sample.image), CENTER), {}
        if self.cache:
            target = self.cache.entries(self.cache.read_for(sample.image, index.unit, index.row, 0), box, flip=False)
        image = crop_and_resize(sample.image, box, self.image_size)
        return {"image": image, **noise_and_label(sample, rng, self.num_tokens), **target}

    def blank(self) -> Row:
        """A row without an image: black, no label."""
        image = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
        row = {"image": image, "noise": torch.zeros(self.num_tokens), "label": torch.tensor(NO_LABEL)}
        return {**row, **(self.cache.blank() if self.cache else {})}


def noise_and_label(sample: EncodedImage, rng: np.random.Generator, num_tokens: int) -> Row:
    """`noise` uniform in [0, 1) and `label` of an image."""
    noise = torch.from_numpy(rng.random(num_tokens, dtype=np.float32))
    return {"noise": noise, "label": torch.tensor(sample.label)}


class PretrainingData(ImageData):
    """Images from tar shards or folders, in an order that depends on seed and position alone, see `ImageData`.

    Args:
        train: brace pattern of shards, list of such, or a folder of images.
        val: likewise, for validation; with labels (`.cls`, or one folder per class) k-NN accuracy is reported. None:
            no validation.
        image_size: pixels per side of a view.
        patch_size: of the student; gives the number of tokens.
        scale, ratio, flip: of the random crop, see `RandomCrops`.
        num_views: None for a fresh view each time, else see `RandomCrop`; a cache of views has all of its own by
            default.
        cache: targets that were written for these images, such as `sami.cache.open.Cache`, or None.
        loading: of `ImageData`; the seed is also that of crops, flips and masks.

    Raises:
        ValueError: see `ShardSource`, `FolderSource` and `check_positive`; `image_size` is not a multiple of
            `patch_size`; or the cache cannot be used for this run, see its `open_crops`.
    """

    train_source: Source
    val_sources: dict[str, Source]

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None,
        *,
        image_size: int,
        patch_size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: float,
        num_views: int | None,
        cache: TargetCache | None,
        **loading: int,
    ) -> None:
        check_positive(image_size=image_size, num_views=num_views)
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
        train_source, val_source = open_source(train), open_source(val) if val else None
        super().__init__(train_source, {"": val_source} if val_source else {}, **loading)
        self.image_size, self.crops = image_size, RandomCrops((scale[0], scale[1]), (ratio[0], ratio[1]), flip)
        side, train_cache, val_cache = image_size // patch_size, None, None
        if cache:
            views = CropViews(self.crops, num_views, image_size, (side, side))
            train_cache, val_cache = cache.open_crops(train_source, val_source, views)
            if not train_cache.holds_maps:
                num_views = num_views or train_cache.num_views
        self.num_views = num_views  # that take turns in the epochs of training; None if each is fresh
        self.make = RandomCrop(image_size, side**2, self.crops, self.seed, num_views, train_cache)
        self.make_val = CenterCrop(image_size, side**2, val_cache)

    def train_set(self) -> TrainSet:
        return TrainSet(self.train_source, self.train_order(), self.make, seed=self.seed, stream=Stream.PRETRAINING)

    def val_set(self, name: str) -> EvalSet:
        how = {"seed": self.seed, "stream": Stream.PRETRAINING_VAL}
        return EvalSet(self.val_sources[name], self.make_val, self.make_val.blank(), **how)


def image_folder(root: str, val: str | None, **options: Any) -> PretrainingData:
    """`PretrainingData` of a plain folder of images. Raises ValueError where `root` is none."""
    if not Path(root).is_dir():
        raise ValueError(f"root={root} is not a folder")
    return PretrainingData(root, val, shuffle_window=1, **options)


def sample(folder: str, *, num_train: int, num_val: int, **options: Any) -> PretrainingData:
    """`PretrainingData` of the built-in scenes, which are drawn into `folder` first."""
    return PretrainingData(*draw_shards(folder, num_train=num_train, num_val=num_val), **options)
