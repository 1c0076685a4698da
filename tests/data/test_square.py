import numpy as np
import pytest
import torch
from masked_images import rle, write_coco, write_sa1b_folder

from sami.data.crops import normalize
from sami.data.finetuning import FinetuningData
from sami.data.square import FrameSpec, content_mask

OPTIONS = {
    **{"image_size": 64, "mask_size": None, "resize_mode": "pad", "num_masks": 4, "num_val_masks": 2, "max_area": 0.9},
    **{"flip": 0.5, "scale": (1.0, 1.0)},
    **{"seed": 0, "num_workers": 0, "shuffle_window": 1, "val_batch_size": 2},
}


def test_padding_is_zero_after_normalising_as_sam_has_it(tmp_path) -> None:
    data = FinetuningData(str(write_sa1b_folder(tmp_path, 4)), None, **OPTIONS)
    data.setup_stream(batch_size=2, epoch_size=4, num_batches=2)
    batch = data.train_set().__getitems__([0, 1])
    assert batch["input_size"].tolist() == [[48, 64]] * 2 and batch["masks"].shape[-2:] == (16, 16)
    ready = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(ready["image"][:, :, :48], normalize(batch["image"])[:, :, :48])
    assert not ready["image"][:, :, 48:].any() and not batch["masks"][:, :, 12:].any()


def test_content_mask() -> None:
    content = content_mask(torch.tensor([[2, 4], [3, 1]]), 4)
    assert content.shape == (2, 1, 4, 4) and content.flatten(1).sum(1).tolist() == [8, 3]
    assert content[1, 0, :3, 0].all()


def test_validation_sets_by_name(tmp_path) -> None:
    train, coco = str(write_sa1b_folder(tmp_path / "a", 4)), write_coco(tmp_path / "b", 4)
    named = FinetuningData(train, {"mine": train, "coco": str(coco)}, **OPTIONS)
    assert list(named.val_sources) == ["mine", "coco"] and named.num_images == 4
    batch = named.spread_val_batch("coco", 3)
    assert [len(objects) for objects in batch["objects"]] == [2, 2, 2] and batch["image"].dtype == torch.float32
    files = {"annotations": str(coco / "instances.json"), "images": str(coco / "images")}
    assert (
        list(FinetuningData(train, files, **OPTIONS).val_sources)
        == list(FinetuningData(train, train, **OPTIONS).val_sources)
        == [""]
    )
    assert FinetuningData(train, None, **OPTIONS).val_sources == {}


@pytest.mark.parametrize("resize_mode", ["stretch", "pad"])
def test_what_lies_beyond_a_windows_edge_is_not_in_it(resize_mode) -> None:
    """Cells at the edge may reach beyond it, where the image goes on; and where a mask is all there is, it is none."""
    spec, window = FrameSpec(64, 16, resize_mode, 0.9), (10, 20, 31, 47)
    inside = np.zeros((60, 90), dtype=bool)
    inside[10:41, 20:67] = True
    assert spec.mask(rle(~inside), (60, 90), flip=False, window=window) is None
    assert spec.mask(rle(inside), (60, 90), flip=False, window=window) is None
    assert spec.mask(rle(inside), (60, 90), flip=False) is not None
    inside[:, :30] = False
    assert spec.mask(rle(inside), (60, 90), flip=False, window=window)[0].any()


def test_longest_side_is_rounded_as_sam_does() -> None:
    spec = FrameSpec(1024, 256, "pad", 0.9)
    assert spec.of((600, 800)).input_size == (768, 1024) and spec.of((1500, 2247)).input_size == (684, 1024)
    assert spec.of((1, 20000)).input_size == (1, 1024)
