"""The loops that read, replace and collect, with the least that a stage can make of an image."""

import numpy as np
import pytest
import torch
from conftest import write_folder

from sami.data.datasets import EvalSet, Index, Row, TrainSet, keep_valid, stack_rows
from sami.data.decode import decode_image
from sami.data.sampling import NO_ROW, ShuffledOrder, Stream
from sami.data.sources.base import EncodedImage
from sami.data.sources.images import FolderSource


def make(sample: EncodedImage, rng: np.random.Generator, index: Index) -> Row:
    image = torch.from_numpy(decode_image(sample.image).copy())
    return {"image": image, "noise": torch.tensor(rng.random()), "row": torch.tensor(index.row), "note": index}


def train_set(source: FolderSource, *, seed: int = 0) -> TrainSet:
    order = ShuffledOrder(source.counts, seed=seed, window=2, epoch_size=8)
    return TrainSet(source, order, make, seed=seed, stream=Stream.PRETRAINING)


def test_make_is_told_where_and_in_which_epoch(tmp_path) -> None:
    images = train_set(FolderSource(str(write_folder(tmp_path, 8))))
    batch = images.__getitems__([3, 12])
    assert batch["note"] == [(*images.order.locate(3), 0), (*images.order.locate(12), 1)]
    assert batch["row"].tolist() == [index.row for index in batch["note"]] and batch["position"].tolist() == [3, 12]


def test_broken_image_is_replaced_and_reported(tmp_path) -> None:
    root = write_folder(tmp_path, 8)
    broken = root / "class_1" / "image_003.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    source = FolderSource(str(root))
    images = train_set(source)
    batch = images.__getitems__(list(range(8)))
    ((where, why),) = batch["broken"]
    assert where == str(broken) and why
    row = next(p for p in range(8) if source.name(*images.order.locate(p)) == str(broken))
    assert batch["image"][row].float().std() > 1 and batch["row"][row] >= 0
    again = train_set(source).__getitems__([row])
    assert torch.equal(again["image"][0], batch["image"][row])


def test_nothing_but_broken_images(tmp_path) -> None:
    root = write_folder(tmp_path, 8)
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"51 images in a row cannot be used, the last is .*image_"):
        train_set(FolderSource(str(root))).__getitems__([0])


def test_evaluation(tmp_path) -> None:
    root = write_folder(tmp_path, 3)
    (root / "class_0" / "image_002.jpg").write_bytes(b"")
    blank = {"image": torch.zeros(48, 64, 3, dtype=torch.uint8), "noise": torch.tensor(0.0, dtype=torch.float64)}
    blank |= {"row": torch.tensor(-1), "note": None, "extra": torch.tensor(7)}
    images = EvalSet(FolderSource(str(root)), make, blank, seed=0, stream=Stream.PRETRAINING_VAL)
    batch = images.__getitems__([0, 1, 2, NO_ROW])
    assert batch["image_valid"].tolist() == [True, False, True, False] and len(batch["broken"]) == 1
    assert batch["row"].tolist() == [0, -1, 2, -1] and batch["extra"].tolist() == [7] * 4
    assert batch["note"] == [(0, 0, 0), None, (0, 2, 0), None] and not batch["image"][1::2].any()
    kept = keep_valid(batch)
    assert kept["row"].tolist() == [0, 2] and kept["note"] == [(0, 0, 0), (0, 2, 0)] and "broken" not in kept
    assert torch.equal(images.__getitems__([2])["noise"][0], batch["noise"][2])


def test_rows_are_stacked_as_they_are_whatever_the_precision_of_the_run() -> None:
    rows = [{"scale": torch.ones(2, dtype=torch.float16)}, {"scale": torch.zeros(2, dtype=torch.float16)}]
    with torch.autocast("cpu", torch.bfloat16):
        assert stack_rows(rows)["scale"].dtype == torch.float16
