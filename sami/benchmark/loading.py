"""How fast one core turns images into crops, beside Pillow doing the same.

S pixels per side of a crop
"""

import hashlib
import io

import numpy as np
import simplejpeg
import torch
from PIL import Image

from sami.data.crops import RandomCrops
from sami.data.datasets import Batch, TrainSet
from sami.data.pretraining import RandomCrop
from sami.data.sampling import ShuffledOrder, Stream
from sami.data.sources.base import NO_LABEL, EncodedImage
from sami.data.sources.drawn_scenes import draw_scene

CROPS = RandomCrops(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)


class DrawnImages:
    """A source of JPEGs in memory, so that decoding is measured and no disk.

    Args:
        num_images: how many scenes to draw.
        size: pixels per side; 400 is about what ImageNet's images have, 256 what `sami.pack short_side=256` leaves.
    """

    def __init__(self, num_images: int, *, size: int) -> None:
        scenes = [draw_scene(0, index, size=size).image for index in range(num_images)]
        self.files = [simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420") for image in scenes]
        self.counts = [num_images]
        self.fingerprint = hashlib.sha256(b"".join(self.files)).hexdigest()

    def name(self, unit: int, row: int) -> str:
        """The number of the scene."""
        return f"scene {row}"

    def key(self, unit: int, row: int) -> str:
        """The number of the scene."""
        return f"{row:08d}"

    def read(self, unit: int, row: int) -> EncodedImage:
        """The JPEG's bytes."""
        return EncodedImage(self.files[row], NO_LABEL)


class Loading:
    """Loads the next batch of training crops at each call.

    Args:
        images: where they come from.
        batch_size: of a call.
        side: S.
    """

    def __init__(self, images: DrawnImages, *, batch_size: int, side: int) -> None:
        order = ShuffledOrder(images.counts, seed=0, window=1, epoch_size=sum(images.counts))
        crop = RandomCrop(side, (side // 16) ** 2, CROPS, seed=0)
        self.dataset = TrainSet(images, order, crop, seed=0, stream=Stream.PRETRAINING)
        self.side = side
        self.batch_size, self.next = batch_size, 0

    def __call__(self) -> Batch:
        """A batch, in this process and on one core."""
        self.next += self.batch_size
        return self.load(range(self.next - self.batch_size, self.next))

    def load(self, positions: range) -> Batch:
        """A batch of `RandomCrop`."""
        return self.dataset.__getitems__(list(positions))


class PillowLoading(Loading):
    """The same images and kind of crops by the usual pipeline: decode, crop and resize in Pillow, then to a tensor."""

    def load(self, positions: range) -> Batch:
        """`image` uint8 [B, 3, S, S]."""
        crops, side = [], self.side
        for position in positions:
            image = self.dataset.source.read(*self.dataset.order.locate(position))
            picture = Image.open(io.BytesIO(image.image)).convert("RGB")
            rng = np.random.Generator(np.random.PCG64(position))
            top, left, height, width = CROPS.draw_box((picture.height, picture.width), rng)
            box = (left, top, left + width, top + height)
            crop = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
            crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
        return {"image": torch.stack(crops)}
