import pytest
import torch
from masked_photos import write_coco, write_sa1b_folder

from sami.data.crops import normalize
from sami.data.masked_photos import MaskData
from sami.data.square_photos import content_mask

OPTIONS = {
    **{"image_size": 64, "mask_size": None, "resize_mode": "pad", "num_masks": 4, "num_val_masks": 2, "max_area": 0.9},
    **{"flip": 0.5, "min_crop": 1.0},
    **{"seed": 0, "num_workers": 0, "shuffle_window": 1, "val_batch_size": 2},
}


def test_padding_is_zero_after_normalising_as_sam_has_it(tmp_path) -> None:
    data = MaskData(str(write_sa1b_folder(tmp_path, 4)), None, **OPTIONS)
    data.set_stream(batch_size=2, epoch_size=4, num_batches=2)
    batch = data.train_views().__getitems__([0, 1])
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
    named = MaskData(train, {"mine": train, "coco": str(coco)}, **OPTIONS)
    assert list(named.val_sources) == ["mine", "coco"] and named.num_photos == 4
    batch = named.spread_val_batch("coco", 3)
    assert [len(objects) for objects in batch["objects"]] == [2, 2, 2] and batch["image"].dtype == torch.float32
    files = {"annotations": str(coco / "instances.json"), "images": str(coco / "images")}
    assert (
        list(MaskData(train, files, **OPTIONS).val_sources)
        == list(MaskData(train, train, **OPTIONS).val_sources)
        == [""]
    )
    assert MaskData(train, None, **OPTIONS).val_sources == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize_mode": "crop"}, "choose stretch or pad"),
        ({"num_masks": 0}, "num_masks=0"),
        ({"max_area": 0}, "max_area=0"),
        ({"min_crop": 1.1}, "min_crop=1.1"),
    ],
)
def test_mistakes(tmp_path, wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        MaskData(str(write_sa1b_folder(tmp_path, 1)), None, **{**OPTIONS, **wrong})
