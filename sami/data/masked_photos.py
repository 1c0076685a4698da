"""The data module of stages that learn from photos with masks."""

from typing import Any

from sami.data.mask_sources import open_mask_source
from sami.data.mask_views import MaskFrame, TrainMaskViews
from sami.data.photo_objects import EvalMaskViews
from sami.data.square_photos import SquareData, from_scenes


class MaskData(SquareData):
    """Photos with masks, in an order that depends on seed and position alone, see `SquareData`.

    Args:
        train: see `open_mask_source`.
        val: likewise, or several by name ({"coco": ..., "mine": ...}), each with numbers of its own. None: no
            validation.
        image_size: pixels per side of what the model sees.
        mask_size: cells per side of the masks that training compares with. None: a quarter of `image_size`, what SAM's
            decoder puts out. Validation compares in pixels of the photo, see `sami.methods.mask_validation`.
        resize_mode: "stretch" or "pad", see `sami.ops.frames`; has to be the model's.
        num_masks, num_val_masks: of a photo, at most.
        max_area: masks that cover more than this fraction of their photo are not trained on (0.9: arXiv:2304.02643,
            App. A).
        flip: probability of mirroring; neither SAM nor EfficientSAM does.
        min_crop: below 1, training sees a random window of each photo, of at least this fraction of its area.
        seed: of order, masks, flips and prompts.
        num_workers: loading processes per rank; 0 loads in the training process.
        shuffle_window: shards that are shuffled among themselves, see `ShuffledOrder`.
        val_batch_size: photos per validation batch and rank.

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
        min_crop: float,
        seed: int,
        num_workers: int,
        shuffle_window: int,
        val_batch_size: int,
    ) -> None:
        counts = (num_masks, num_val_masks, val_batch_size, image_size)
        shares = 0 < max_area <= 1 and 0 < min_crop <= 1
        if min(counts) < 1 or not shares:
            raise ValueError(
                f"image_size={image_size}, num_masks={num_masks}, num_val_masks={num_val_masks}, val_batch_size="
                f"{val_batch_size}, max_area={max_area}, min_crop={min_crop}: "
                "give positive numbers, the last two up to 1"
            )
        stream = {"num_workers": num_workers, "shuffle_window": shuffle_window, "val_batch_size": val_batch_size}
        frame = MaskFrame(image_size, mask_size or max(1, image_size // 4), resize_mode, max_area)
        super().__init__(open_mask_source(train), val, open_mask_source, frame=frame, seed=seed, **stream)
        self.drawn = {"num_masks": num_masks, "flip": flip, "min_crop": min_crop}
        self.num_val_masks = num_val_masks

    def train_views(self) -> TrainMaskViews:
        """The training views by position."""
        return TrainMaskViews(self.train_source, self.train_order(), seed=self.seed, frame=self.frame, **self.drawn)

    def val_views(self, name: str) -> EvalMaskViews:
        """The validation views of one set by number."""
        return EvalMaskViews(self.val_sources[name], seed=self.seed, frame=self.frame, num_masks=self.num_val_masks)


def masked_sample(folder: str, *, num_train: int, num_val: int, **options: Any) -> MaskData:
    """`MaskData` of the built-in scenes, which are drawn into `folder` first."""
    return from_scenes(MaskData, folder, num_train=num_train, num_val=num_val, **options)
