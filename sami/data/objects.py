"""The exact masks of the objects of one image, to validate on.

Q objects   H W pixels of the image, or of a coarser raster over it
"""

import numpy as np
import torch
from torch import Tensor

from sami.data.decode import BrokenImage
from sami.data.sampling import draw_noise
from sami.data.sources.annotations import segmentation_counts
from sami.data.sources.base import AnnotatedImage
from sami.data.square import FrameSpec
from sami.ops.frames import ImageFrame
from sami.ops.rle import mask_cells, rle_to_mask

LONGEST_SIDE = 1024  # pixels; a larger image is compared on a raster of this size: one of SA-1B costs a fifth then


class ImageObjects:
    """The objects of one image, decoded a few at a time: hundreds of masks of a large image do not fit in memory.

    A plain class of numpy arrays: Lightning, which moves tensors and takes tuples apart, leaves it as it
    is, and it needs no file descriptor for each mask on its way from a loading worker.

    Args:
        frame: where the image lies in the model's square.
        counts: run lengths of each mask, of the whole image.
        noise: [Q, NUM_NOISE] uniform in [0, 1), which decides the prompts.
        upright: see `AnnotatedImage.raster`.
    """

    def __init__(self, frame: ImageFrame, counts: list[Tensor], noise: Tensor, *, upright: bool = True) -> None:
        self.frame, self.noise, self.upright = frame, noise.numpy(), upright
        self.counts = [runs.numpy().astype(np.int32) for runs in counts]

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: slice, frame: ImageFrame) -> tuple[Tensor, Tensor]:
        """Some of the objects: masks [1, Q, H, W] bool and noise [1, Q, NUM_NOISE].

        Args:
            rows: which.
            frame: the own one, for the image's own pixels, or `self.frame.shrunk(...)`, for fewer: see `mask_cells`.
        """
        size = self.frame.original_size
        codes = [torch.from_numpy(runs).long() for runs in self.counts[rows]]
        if frame == self.frame:
            masks = [rle_to_mask(runs, size) for runs in codes]
        else:
            (own_H, own_W), (H, W) = size, frame.original_size
            y, x = (torch.linspace(0, own, n + 1, dtype=torch.float64) for own, n in ((own_H, H), (own_W, W)))
            masks = [mask_cells(runs, size, y, x) for runs in codes]
        return torch.stack(masks).unsqueeze(0), torch.from_numpy(self.noise[rows]).unsqueeze(0)


def draw_objects(sample: AnnotatedImage, spec: FrameSpec, rng: np.random.Generator, *, num_masks: int) -> ImageObjects:
    """Up to `num_masks` of an image's masks, drawn at random; which ones does not depend on the model's frame.

    Masks of every size count: what training leaves out as too large is no reason not to be asked for it.

    Raises:
        BrokenImage: the image or one of the masks that were drawn cannot be read, or no mask has a pixel.
    """
    size, upright = sample.raster()
    counts: list[Tensor] = []
    for number in rng.permutation(len(sample.segmentations)):
        if len(counts) == num_masks:
            break
        runs = segmentation_counts(sample.segmentations[number], size)
        if runs[1::2].any():
            counts.append(runs)
    if not counts:
        raise BrokenImage(f"none of its {len(sample.segmentations)} masks can be used: they are empty")
    return ImageObjects(spec.of(size), counts, draw_noise(rng, len(counts)), upright=upright)
