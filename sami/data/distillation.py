"""Data of encoder distillation: whole images in the model's square, with a teacher's maps of them if there are any.

B images   S pixels per side of the model's square   Q prompts or objects per image
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sami.data.datasets import EvalSet, Index, Row, TrainSet
from sami.data.decode import BrokenImage, image_size
from sami.data.loading import check_positive
from sami.data.objects import LONGEST_SIDE, ImageObjects, draw_objects
from sami.data.sampling import Stream, draw_noise
from sami.data.sources.base import AnnotatedImage, AnySource, EncodedImage
from sami.data.sources.drawn_shards import draw_shards
from sami.data.sources.images import ShardSource, open_source
from sami.data.sources.masks import Sa1bShards, open_mask_source
from sami.data.sources.tar_index import load_index
from sami.data.square import FrameSpec, SquareImageData
from sami.data.targets import TargetCache, TargetReader
from sami.ops.prompts import tight_box

PLACE_NOISE = 2  # numbers that decide a position in an image


@dataclass
class WholeImage:
    """A whole image: `image` uint8 [3, S, S], `input_size` int64 [2], and with a cache the map
    as it is, see `TargetReader.whole_entries`."""

    spec: FrameSpec  # of the model's square
    cache: TargetReader | None  # maps of these images

    def show(self, sample: EncodedImage | AnnotatedImage, index: Index, *, upright: bool = True) -> Row:
        """The entries above. Raises BrokenImage where image or map cannot be used."""
        image, target = self.spec.image(sample.image, flip=False, upright=upright), {}
        if self.cache:
            if not upright:
                raise BrokenImage("its masks are for the image before EXIF turns it, its map for the upright one")
            record = self.cache.read_for(sample.image, index.unit, index.row, 0)
            target = self.cache.whole_entries(record)
        input_size = torch.tensor(self.spec.of(image_size(sample.image, upright=upright)).input_size)
        return {"image": image, "input_size": input_size, **target}


@dataclass
class PromptedImage(WholeImage):
    """A whole image to train on, and `noise` float32 [Q, NUM_NOISE], which decides the prompts."""

    num_prompts: int  # Q

    def __call__(self, sample: EncodedImage, rng: np.random.Generator, index: Index) -> Row:
        return {**self.show(sample, index), "noise": draw_noise(rng, self.num_prompts)}


@dataclass
class ImageWithObjects(WholeImage):
    """A whole image to validate on, with its objects if there are masks of any. In addition

    - `objects`, an `ImageObjects`; None without masks.
    - `place_noise` float32 [Q, PLACE_NOISE], which decides positions to ask at, with masks and without.
    - `box` float32 [Q, 2, 2], corners of the boxes of the objects, model frame, and `object_valid` bool [Q], which are.
    """

    num_masks: int  # Q, also the most objects

    def __call__(self, sample: EncodedImage | AnnotatedImage, rng: np.random.Generator, index: Index) -> Row:
        objects, Q = None, self.num_masks
        if isinstance(sample, AnnotatedImage) and sample.segmentations:
            objects = draw_objects(sample, self.spec, rng, num_masks=Q)
        row = self.show(sample, index, upright=objects is None or objects.upright)
        row |= {"objects": objects, "place_noise": draw_noise(rng, Q)[:, :PLACE_NOISE]}
        if objects is not None:
            missing = Q - len(objects)
            row["box"] = torch.cat([boxes_of(objects), torch.zeros(missing, 2, 2)])
            row["object_valid"] = torch.arange(Q) < len(objects)
        return row

    def blank(self) -> Row:
        """A row without an image."""
        Q = self.num_masks
        row = {**self.spec.blank(), "objects": None, "place_noise": torch.zeros(Q, PLACE_NOISE)}
        row |= {"box": torch.zeros(Q, 2, 2), "object_valid": torch.zeros(Q, dtype=torch.bool)}
        return {**row, **(self.cache.blank() if self.cache else {})}


def boxes_of(objects: ImageObjects) -> Tensor:
    """Corners of the tightest boxes, [Q, 2, 2] in the model frame, of the raster that validation measures on."""
    frame = objects.frame.shrunk(LONGEST_SIDE)
    return torch.cat(
        [frame.to_model(tight_box(objects.take(slice(q, q + 1), frame)[0])[0][0]) for q in range(len(objects))]
    )


class WholeImageData(SquareImageData):
    """Whole images, in a stream of positions, see `SquareImageData`.

    Args:
        train: images: brace pattern of shards, list of such, or a folder. Masks beside them are not read.
        val: likewise, or a set with masks, see `open_val_source`; or several by name ({"coco": ..., "mine": ...}).
            None: no validation.
        image_size: S.
        resize_mode: "pad" or "stretch", see `sami.ops.frames`; the teacher's.
        num_prompts: positions in each training image at which masks are asked for, where the method compares masks.
        num_val_masks: of a validation image, at most; images without masks are asked at as many positions.
        cache: maps that were written for these images, such as `sami.cache.open.Cache`, or None.
        loading: of `ImageData`; the seed is also that of prompts.

    Raises:
        ValueError: see the sources; a number that makes no sense; or the cache holds no maps, or those of other images.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        *,
        image_size: int,
        resize_mode: str,
        num_prompts: int,
        num_val_masks: int,
        cache: TargetCache | None,
        **loading: int,
    ) -> None:
        check_positive(image_size=image_size, num_prompts=num_prompts, num_val_masks=num_val_masks)
        spec = FrameSpec(image_size, image_size, resize_mode)
        super().__init__(open_source(train), val, open_val_source, spec, **loading)
        self.num_prompts, self.num_val_masks = num_prompts, num_val_masks
        self.train_cache, self.val_caches = None, {}
        if cache:
            opened = cache.open_maps(self.train_source, self.val_sources, resize_mode=resize_mode)
            self.train_cache, self.val_caches = opened

    def knows_teacher(self, name: str) -> bool:
        """Whether a teacher can say something of this validation set: a cache may hold nothing of it."""
        return self.train_cache is None or self.val_caches[name] is not None

    def train_set(self) -> TrainSet:
        make = PromptedImage(self.spec, self.train_cache, self.num_prompts)
        return TrainSet(self.train_source, self.train_order(), make, seed=self.seed, stream=Stream.DISTILLATION)

    def val_set(self, name: str) -> EvalSet:
        make = ImageWithObjects(self.spec, self.val_caches.get(name), self.num_val_masks)
        return EvalSet(self.val_sources[name], make, make.blank(), seed=self.seed, stream=Stream.DISTILLATION_VAL)


def open_val_source(where: Any) -> AnySource:
    """Images, with their masks where there are any: whatever `open_mask_source` or `open_source` takes.

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


def sample(folder: str, *, num_train: int, num_val: int, **options: Any) -> WholeImageData:
    """`WholeImageData` of the built-in scenes, which are drawn into `folder` first."""
    return WholeImageData(*draw_shards(folder, num_train=num_train, num_val=num_val), **options)
