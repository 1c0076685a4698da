"""Data of fine-tuning a promptable segmenter: images with some of their masks.

B images   Q objects per image   S pixels per side of the model's square   s cells per side of masks
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sami.data.datasets import Batch, EvalSet, Index, Row, TrainSet, stack_rows
from sami.data.decode import BrokenImage
from sami.data.loading import check_positive
from sami.data.objects import draw_objects
from sami.data.sampling import Stream, draw_noise
from sami.data.sources.base import AnnotatedImage
from sami.data.sources.drawn_shards import draw_shards
from sami.data.sources.masks import open_mask_source
from sami.data.square import FrameSpec, SquareImageData
from sami.ops.rle import Window


@dataclass
class SomeMasks:
    """An image or a window of it, and some of its masks, drawn at random; only these are decoded.

    `image` uint8 [3, S, S], `masks` bool [q, s, s] and `boxes` float32 [q, 4] (see `FrameSpec.mask`), `noise` float32
    [q, NUM_NOISE] (which decides the prompts), `input_size` int64 [2]. q is up to `num_masks`.

    A window that no mask reaches into is given up for the whole image.
    """

    spec: FrameSpec  # of the model's square
    num_masks: int  # of an image, at most
    flip: float  # probability of mirroring
    scale: tuple[float, float] = (1.0, 1.0)  # least and most area of a window, see `draw_window`; (1, 1): whole images

    def __call__(self, sample: AnnotatedImage, rng: np.random.Generator, index: Index) -> Row:
        """Raises BrokenImage where the image or a mask that was drawn cannot be used, or no mask is left."""
        size, upright = sample.raster()
        flip = bool(rng.random() < self.flip)
        order = rng.permutation(len(sample.segmentations))
        window = draw_window(size, rng, scale=self.scale) if self.scale[0] < 1 else None
        for part in (window, None) if window else (None,):
            found: list[tuple[Tensor, Tensor]] = []
            for number in order:
                if len(found) == self.num_masks:
                    break
                mask = self.spec.mask(sample.segmentations[number], size, flip=flip, window=part)
                if mask is not None:
                    found.append(mask)
            if found:
                masks, boxes = (torch.stack(one) for one in zip(*found, strict=True))
                return {
                    "image": self.spec.image(sample.image, flip=flip, window=part, upright=upright),
                    **{"masks": masks, "boxes": boxes, "noise": draw_noise(rng, self.num_masks)[: len(found)]},
                    "input_size": torch.tensor(self.spec.of(part[2:] if part else size).input_size),
                }
        raise BrokenImage(f"none of its {len(sample.segmentations)} masks can be used: too large, or empty")


def draw_window(size: tuple[int, int], rng: np.random.Generator, *, scale: tuple[float, float]) -> Window:
    """A part of an image of this (H, W) and of its shape, anywhere.

    Args:
        scale: smallest and largest fraction of the area, as of torchvision's RandomResizedCrop; but the logarithm of
            the area is uniform, so that every magnification comes as often as any other.
    """
    low, high = scale
    side = high**0.5 * (low / high) ** (rng.random() / 2)
    height, width = (max(1, round(own * side)) for own in size)
    return int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1)), height, width


def pad_objects(rows: list[Row]) -> Batch:
    """`SomeMasks` of images -> a batch; Q is that of the image with most masks, `object_valid` bool [B, Q] says which
    exist."""
    counts = torch.tensor([len(row["masks"]) for row in rows])
    ragged = {name: [row.pop(name) for row in rows] for name in ("masks", "boxes", "noise")}
    padded = {name: pad_sequence(one, batch_first=True) for name, one in ragged.items()}  # [B, Q, ...]
    return {**stack_rows(rows), **padded, "object_valid": torch.arange(int(counts.max())) < counts.unsqueeze(1)}


@dataclass
class ExactObjects:
    """An image as the model sees it, uint8 [3, S, S], and the exact masks of its `objects`, an `ImageObjects`; with
    `input_size` int64 [2]."""

    spec: FrameSpec  # of the model's square
    num_masks: int  # of an image, at most; always the same

    def __call__(self, sample: AnnotatedImage, rng: np.random.Generator, index: Index) -> Row:
        objects = draw_objects(sample, self.spec, rng, num_masks=self.num_masks)
        image = self.spec.image(sample.image, flip=False, upright=objects.upright)
        return {"image": image, "objects": objects, "input_size": torch.tensor(objects.frame.input_size)}


class FinetuningData(SquareImageData):
    """Images with masks, in an order that depends on seed and position alone, see `SquareImageData`.

    Args:
        train: see `open_mask_source`.
        val: likewise, or several by name ({"coco": ..., "mine": ...}), each with numbers of its own. None: no
            validation.
        image_size: pixels per side of what the model sees.
        mask_size: cells per side of the masks that training compares with. None: a quarter of `image_size`, what SAM's
            decoder puts out. Validation compares in the image's own pixels, of large images on `LONGEST_SIDE` of them.
        resize_mode: "stretch" or "pad", see `sami.ops.frames`; has to be the model's.
        num_masks, num_val_masks: of an image, at most.
        max_area: masks that cover more than this fraction of their image are not trained on (0.9: arXiv:2304.02643,
            App. A).
        flip: probability of mirroring; neither SAM nor EfficientSAM does.
        scale: smallest and largest fraction of an image's area that training sees, see `draw_window`; (1, 1) is all.
        loading: of `ImageData`; the seed is also that of masks, flips and prompts.

    Raises:
        ValueError: see `open_mask_source`; an unknown `resize_mode`, or a number that makes no sense.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        *,
        image_size: int,
        mask_size: int | None,
        resize_mode: str,
        num_masks: int,
        num_val_masks: int,
        max_area: float,
        flip: float,
        scale: tuple[float, float],
        **loading: int,
    ) -> None:
        check_positive(image_size=image_size, num_masks=num_masks, num_val_masks=num_val_masks)
        low, high = scale
        if not 0 < max_area <= 1 or not 0 < low <= high <= 1:
            raise ValueError(f"max_area={max_area}, scale={[low, high]}: give fractions above 0 and up to 1, rising")
        spec = FrameSpec(image_size, mask_size or max(1, image_size // 4), resize_mode, max_area)
        super().__init__(open_mask_source(train), val, open_mask_source, spec, **loading)
        self.make, self.make_val = SomeMasks(spec, num_masks, flip, (low, high)), ExactObjects(spec, num_val_masks)

    def train_set(self) -> TrainSet:
        how = {"seed": self.seed, "stream": Stream.FINETUNING, "join": pad_objects}
        return TrainSet(self.train_source, self.train_order(), self.make, **how)

    def val_set(self, name: str) -> EvalSet:
        blank = {**self.spec.blank(), "objects": None}
        return EvalSet(self.val_sources[name], self.make_val, blank, seed=self.seed, stream=Stream.FINETUNING_VAL)


def sample(folder: str, *, num_train: int, num_val: int, **options: Any) -> FinetuningData:
    """`FinetuningData` of the built-in scenes, which are drawn into `folder` first."""
    return FinetuningData(*draw_shards(folder, num_train=num_train, num_val=num_val), **options)
