"""The data module of stages that learn from photos with masks."""

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sami.data.mask_sources import open_mask_source
from sami.data.mask_views import MaskFrame, TrainMaskViews
from sami.data.photo_objects import EvalMaskViews
from sami.data.sample import write_sample
from sami.data.stream import StreamData, ViewLoader
from sami.data.transforms import normalize


class MaskData(StreamData):
    """Photos with masks, in an order that depends on seed and position alone, see `StreamData`.

    Args:
        train: see `open_mask_source`.
        val: likewise, or several by name ({"coco": ..., "mine": ...}), each with numbers of its own. None: no
            validation.
        image_size: pixels per side of what the model sees.
        mask_size: cells per side of the masks that training compares with. None: a quarter of `image_size`, what SAM's
            decoder puts out. Validation compares in the photo's own pixels.
        preprocess: "squash" or "pad", see `sami.ops.frames`; has to be the model's.
        num_masks, num_val_masks: of a photo, at most.
        max_area: masks that cover more than this fraction of their photo are not trained on (0.9: arXiv:2304.02643,
            App. A).
        flip: probability of mirroring; neither SAM nor EfficientSAM does.
        seed: of order, masks, flips and prompts.
        num_workers: loading processes per rank; 0 loads in the training process.
        shuffle_window: shards that are shuffled among themselves, see `ShuffledOrder`.
        val_batch_size: photos per validation batch and rank.

    Raises:
        ValueError: see `open_mask_source`; an unknown `preprocess`, or a number that makes no sense.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        *,
        image_size: int,
        mask_size: int | None,
        preprocess: str,
        num_masks: int,
        num_val_masks: int,
        max_area: float,
        flip: float,
        seed: int,
        num_workers: int,
        shuffle_window: int,
        val_batch_size: int,
    ) -> None:
        if preprocess not in ("squash", "pad"):
            raise ValueError(f"data.preprocess={preprocess!r}: choose squash or pad")
        if min(num_masks, num_val_masks, val_batch_size, image_size) < 1 or not 0 < max_area <= 1:
            raise ValueError(
                f"image_size={image_size}, num_masks={num_masks}, num_val_masks={num_val_masks}, val_batch_size="
                f"{val_batch_size}, max_area={max_area}: give positive numbers, and max_area in (0, 1]"
            )
        stream = {"num_workers": num_workers, "shuffle_window": shuffle_window, "val_batch_size": val_batch_size}
        super().__init__(open_mask_source(train), seed=seed, **stream)
        named = val if isinstance(val, Mapping) and "annotations" not in val else {"": val} if val else {}
        self.val_sources = {name: open_mask_source(where) for name, where in named.items()}
        self.frame = MaskFrame(image_size, mask_size or max(1, image_size // 4), preprocess, max_area)
        self.num_masks, self.num_val_masks, self.flip = num_masks, num_val_masks, flip

    @property
    def validates(self) -> bool:
        """Whether there are photos to validate on."""
        return bool(self.val_sources)

    def train_views(self) -> TrainMaskViews:
        """The training views by position."""
        drawn = {"seed": self.seed, "num_masks": self.num_masks, "flip": self.flip}
        return TrainMaskViews(self.train_source, self.train_order(), frame=self.frame, **drawn)

    def val_views(self, name: str) -> EvalMaskViews:
        """The validation views of one set by number."""
        return EvalMaskViews(self.val_sources[name], seed=self.seed, frame=self.frame, num_masks=self.num_val_masks)

    def val_dataloader(self) -> list[ViewLoader]:
        """One loader for each set: every photo once, dealt out to the ranks."""
        return [self.eval_loader(self.val_views(name), sum(source.counts)) for name, source in self.val_sources.items()]

    def spread_val_batch(self, name: str, size: int) -> dict[str, Any]:
        """A normalised batch of validation photos at equal distances, to look at."""
        rows = torch.linspace(0, sum(self.val_sources[name].counts) - 1, size).long().unique().tolist()
        return self.on_after_batch_transfer(self.val_views(name).__getitems__(rows), 0)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pixels travel as bytes and are normalised where they are used; padding is zero after that, as SAM has it."""
        content = content_mask(batch["input_size"], self.frame.side)
        return {**batch, "image": normalize(batch["image"]) * content}  # [B, 3, S, S] float


def content_mask(input_size: Tensor, side: int) -> Tensor:
    """[B, 2] (height, width) -> bool [B, 1, S, S], true where there is photo and no padding."""
    place = torch.arange(side, device=input_size.device)
    rows, columns = (place < extent[:, None] for extent in input_size.unbind(1))  # [B, S] each
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def masked_sample(folder: str, *, num_train: int, num_val: int, **options: Any) -> MaskData:
    """`MaskData` of the built-in scenes, which are drawn into `folder` first."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one rank draws, the others wait for it
        write_sample(Path(folder), num_train=num_train, num_val=num_val)
    train, val = (sorted(map(str, Path(folder).glob(f"{split}-*.tar"))) for split in ("train", "val"))
    return MaskData(train, val, **options)
