import torch
from conftest import write_folder, write_shards

from sami.data.crops import RandomCrops
from sami.data.datasets import EvalSet, TrainSet
from sami.data.pretraining import CenterCrop, RandomCrop
from sami.data.sampling import NO_ROW, ShuffledOrder, Stream
from sami.data.sources.images import FolderSource, ShardSource


def train_set(source: object, *, seed: int = 0) -> TrainSet:
    order = ShuffledOrder(source.counts, seed=seed, window=2, epoch_size=8)
    crop = RandomCrop(32, 4, RandomCrops((0.2, 1.0), (0.75, 1.33), 0.5), seed=seed)
    return TrainSet(source, order, crop, seed=seed, stream=Stream.PRETRAINING)


def test_batch_shapes(tmp_path) -> None:
    batch = train_set(ShardSource(write_shards(tmp_path, [4, 5]))).__getitems__([3, 4, 5])
    assert batch["image"].shape == (3, 3, 32, 32) and batch["image"].dtype == torch.uint8  # [B, 3, S, S]
    assert batch["noise"].shape == (3, 4) and batch["noise"].dtype == torch.float32  # [B, N]
    assert batch["label"].tolist() != [-1, -1, -1] and batch["position"].tolist() == [3, 4, 5]
    assert batch["broken"] == []


def test_a_view_depends_on_seed_and_position_alone(tmp_path) -> None:
    source = ShardSource(write_shards(tmp_path, [4, 5]))
    together = train_set(source).__getitems__(list(range(16)))
    for position in (11, 2, 15):
        alone = train_set(source).__getitems__([position])
        for name in ("image", "noise", "label"):
            assert torch.equal(alone[name][0], together[name][position]), name
    other = train_set(source, seed=1).__getitems__([2])
    assert not torch.equal(other["noise"][0], together["noise"][2])


def test_each_epoch_has_new_crops_and_masks(tmp_path) -> None:
    """The only image of a data set comes in every epoch, never in the same view."""
    source = FolderSource(str(write_folder(tmp_path, 8)))
    images = train_set(source)
    first, second = (
        {images.order.locate(p): images.__getitems__([p]) for p in range(8 * epoch, 8 * epoch + 8)} for epoch in (0, 1)
    )
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[place]["image"], second[place]["image"]) for place in first)
    assert not any(torch.equal(first[place]["noise"], second[place]["noise"]) for place in first)


def test_evaluation_shows_each_image_once_and_always_the_same(tmp_path) -> None:
    source, crop = FolderSource(str(write_folder(tmp_path, 3))), CenterCrop(32, 4)
    images = EvalSet(source, crop, crop.blank(), seed=0, stream=Stream.PRETRAINING_VAL)
    batch, again = images.__getitems__([0, 2, NO_ROW]), images.__getitems__([2])
    assert batch["image"].shape == (3, 3, 32, 32) and batch["label"].tolist() == [0, 1, -1]
    for name in ("image", "noise", "label"):
        assert torch.equal(again[name][0], batch[name][1]) and batch[name].dtype == again[name].dtype
