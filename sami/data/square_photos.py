"""What fine-tuning and distillation ask of data: whole photos in the model's square, several validation sets by name.

B photos   S pixels per side of the model frame
"""

import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sami.data.crops import normalize
from sami.data.mask_sources import MaskSource
from sami.data.mask_views import MaskFrame
from sami.data.sample import write_sample
from sami.data.sources import Source
from sami.data.stream import StreamData, ViewLoader


class SquareData(StreamData):
    """`StreamData` of photos in the model's square.

    Args:
        train: where photos to train on come from.
        val: a set, or several by name ({"coco": ..., "mine": ...}), each with numbers of its own; None: no validation.
        open_val: opens one of them.
        frame: the model's.
        stream: of `StreamData`.

    Raises:
        ValueError: see `open_val`; an unknown `resize_mode` of the frame.
    """

    def __init__(
        self,
        train: Source | MaskSource,
        val: Any,
        open_val: Callable[[Any], Source | MaskSource],
        *,
        frame: MaskFrame,
        **stream: int,
    ) -> None:
        if frame.resize_mode not in ("stretch", "pad"):
            raise ValueError(f"data.resize_mode={frame.resize_mode!r}: choose stretch or pad")
        super().__init__(train, **stream)
        named = val if isinstance(val, Mapping) and "annotations" not in val else {"": val} if val else {}
        self.val_sources = {name: open_val(where) for name, where in named.items()}
        self.frame = frame

    @property
    def validates(self) -> bool:
        """Whether there are photos to validate on."""
        return bool(self.val_sources)

    def val_views(self, name: str) -> Dataset:
        """The photos of one validation set by number."""
        raise NotImplementedError

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


def from_scenes(
    build: Callable[..., SquareData], folder: str, *, num_train: int, num_val: int, **options: Any
) -> SquareData:
    """`build(train, val, **options)` of the built-in scenes with masks, which are drawn into `folder` first."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one rank draws, the others wait for it
        write_sample(Path(folder), num_train=num_train, num_val=num_val)
    train, val = (sorted(map(str, Path(folder).glob(f"{split}-*.tar"))) for split in ("train", "val"))
    return build(train, val, **options)
