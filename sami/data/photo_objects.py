"""Photos to validate on, with the exact masks of their objects.

B photos   Q objects per photo   H W pixels of a grid over the photo   S pixels per side of the model frame
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sami.data.images import BrokenImage
from sami.data.mask_sources import MaskedPhoto, MaskSource
from sami.data.mask_views import MaskFrame, draw_noise
from sami.data.order import locate_in_file_order
from sami.data.segmentations import segmentation_counts
from sami.data.views import PADDING
from sami.ops.frames import Frame
from sami.ops.rle import decode_mask, mask_cells

LONGEST_SIDE = 1024  # pixels; a larger photo is compared on a grid of this size: one of SA-1B costs a fifth then


class PhotoObjects:
    """The objects of one photo, decoded a few at a time: hundreds of masks of a large photo do not fit in memory.

    A plain class of numpy arrays: Lightning, which moves tensors and takes tuples apart, leaves it as it
    is, and it needs no file descriptor for each mask on its way from a loading worker.

    Args:
        frame: where the photo lies in the model's square.
        counts: run lengths of each mask, of the whole photo.
        noise: [Q, NUM_NOISE] uniform in [0, 1), which decides the prompts.
        upright: see `MaskedPhoto.raster`.
    """

    def __init__(self, frame: Frame, counts: list[Tensor], noise: Tensor, *, upright: bool = True) -> None:
        self.frame, self.noise, self.upright = frame, noise.numpy(), upright
        self.counts = [runs.numpy().astype(np.int32) for runs in counts]

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: slice, grid: Frame) -> tuple[Tensor, Tensor]:
        """Some of the objects: masks [1, Q, H, W] bool and noise [1, Q, NUM_NOISE].

        Args:
            rows: which.
            grid: `frame`, for the photo's own pixels, or `frame.shrunk(...)`, for fewer: see `mask_cells`.
        """
        size, (H, W) = self.frame.original_size, grid.original_size
        codes = [torch.from_numpy(runs).long() for runs in self.counts[rows]]
        if grid == self.frame:
            masks = [decode_mask(runs, size) for runs in codes]
        else:
            borders = [
                torch.linspace(0, own, new + 1, dtype=torch.float64) for own, new in zip(size, (H, W), strict=True)
            ]
            masks = [mask_cells(runs, size, *borders) for runs in codes]
        return torch.stack(masks).unsqueeze(0), torch.from_numpy(self.noise[rows]).unsqueeze(0)


def draw_objects(photo: MaskedPhoto, frame: MaskFrame, rng: np.random.Generator, *, num_masks: int) -> PhotoObjects:
    """Up to `num_masks` of a photo's masks, drawn at random; which ones does not depend on the model's frame.

    Masks of every size count: what training leaves out as too large is no reason not to be asked for it.

    Raises:
        BrokenImage: the image or one of the masks that were drawn cannot be read, or no mask has a pixel.
    """
    size, upright = photo.raster()
    counts: list[Tensor] = []
    for number in rng.permutation(len(photo.segmentations)):
        if len(counts) == num_masks:
            break
        runs = segmentation_counts(photo.segmentations[number], size)
        if runs[1::2].any():
            counts.append(runs)
    if not counts:
        raise BrokenImage(f"none of its {len(photo.segmentations)} masks can be used: they are empty")
    return PhotoObjects(frame.of(size), counts, draw_noise(rng, len(counts)), upright=upright)


class EvalMaskViews(Dataset):
    """Each photo with its masks, or with `num_masks` of them that are always the same.

    A batch holds `image` uint8 [B, 3, S, S], `objects`, a `PhotoObjects` for each photo, `input_size` int64 [B, 2],
    `position` int64 [B], and `broken`, a list of (where, why) of photos that could not be used. Those and `PADDING`
    are black, and None among the objects.
    """

    def __init__(self, source: MaskSource, *, seed: int, frame: MaskFrame, num_masks: int) -> None:
        self.source, self.seed, self.frame, self.num_masks = source, seed, frame, num_masks

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """The batch of these photos."""
        batch: dict[str, Any] = {
            "image": torch.zeros(len(rows), 3, self.frame.side, self.frame.side, dtype=torch.uint8),
            "objects": [None] * len(rows),
            "input_size": torch.ones(len(rows), 2, dtype=torch.int64),
            "position": torch.tensor(rows),
            "broken": [],
        }
        for row, number in enumerate(rows):
            if number == PADDING:
                continue
            place = locate_in_file_order(self.source.counts, number)
            rng = np.random.Generator(np.random.PCG64([self.seed, 6, number]))
            try:
                photo = self.source.read(*place)
                objects = draw_objects(photo, self.frame, rng, num_masks=self.num_masks)
                batch["image"][row] = self.frame.image(photo.image, flip=False, upright=objects.upright)
            except BrokenImage as error:
                batch["broken"].append((self.source.name(*place), str(error)))
                continue
            batch["objects"][row] = objects
            batch["input_size"][row] = torch.tensor(objects.frame.input_size)
        return batch
