import numpy as np
import pytest
import torch
from conftest import write_folder, write_shards

from sami.data.crops import RandomCrops
from sami.data.order import ShuffledOrder
from sami.data.sources import FolderSource, ShardSource
from sami.data.views import PADDING, EvalSampler, EvalViews, PositionSampler, TrainViews, keep_valid


def train_views(source: object, *, seed: int = 0) -> TrainViews:
    order = ShuffledOrder(source.counts, seed=seed, window=2, epoch_size=8)
    return TrainViews(source, order, seed=seed, side=32, num_tokens=4, crops=RandomCrops((0.2, 1.0), (0.75, 1.33), 0.5))


def test_batch_shapes(tmp_path) -> None:
    batch = train_views(ShardSource(write_shards(tmp_path, [4, 5]))).__getitems__([3, 4, 5])
    assert batch["image"].shape == (3, 3, 32, 32) and batch["image"].dtype == torch.uint8  # [B, 3, S, S]
    assert batch["noise"].shape == (3, 4) and batch["noise"].dtype == torch.float32  # [B, N]
    assert batch["label"].tolist() != [-1, -1, -1] and batch["position"].tolist() == [3, 4, 5]
    assert batch["broken"] == []


def test_a_view_depends_on_seed_and_position_alone(tmp_path) -> None:
    source = ShardSource(write_shards(tmp_path, [4, 5]))
    together = train_views(source).__getitems__(list(range(16)))
    for position in (11, 2, 15):
        alone = train_views(source).__getitems__([position])
        for name in ("image", "noise", "label"):
            assert torch.equal(alone[name][0], together[name][position]), name
    other = train_views(source, seed=1).__getitems__([2])
    assert not torch.equal(other["noise"][0], together["noise"][2])


def test_each_epoch_has_new_crops_and_masks(tmp_path) -> None:
    """The only photo of a data set comes in every epoch, never in the same view."""
    source = FolderSource(str(write_folder(tmp_path, 8)))
    views = train_views(source)
    first, second = (
        {views.order.locate(p): views.__getitems__([p]) for p in range(8 * epoch, 8 * epoch + 8)} for epoch in (0, 1)
    )
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[place]["image"], second[place]["image"]) for place in first)
    assert not any(torch.equal(first[place]["noise"], second[place]["noise"]) for place in first)


def test_broken_photo_is_replaced_and_reported(tmp_path) -> None:
    root = write_folder(tmp_path, 8)
    broken = root / "class_1" / "photo_003.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    source = FolderSource(str(root))
    views = train_views(source)
    batch = views.__getitems__(list(range(8)))
    ((where, why),) = batch["broken"]
    assert where == str(broken) and why
    row = next(p for p in range(8) if source.name(*views.order.locate(p)) == str(broken))
    assert batch["image"][row].float().std() > 1 and batch["label"][row] >= 0
    again = train_views(source).__getitems__([row])
    assert torch.equal(again["image"][0], batch["image"][row])


def test_nothing_but_broken_photos(tmp_path) -> None:
    root = write_folder(tmp_path, 8)
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"51 photos in a row cannot be used, the last is .*photo_"):
        train_views(FolderSource(str(root))).__getitems__([0])


def test_eval_views(tmp_path) -> None:
    root = write_folder(tmp_path, 3)
    (root / "class_0" / "photo_002.jpg").write_bytes(b"")
    views = EvalViews(FolderSource(str(root)), seed=0, side=32, num_tokens=4)
    batch = views.__getitems__([0, 1, 2, PADDING])
    assert batch["valid"].tolist() == [True, False, True, False] and len(batch["broken"]) == 1
    kept = keep_valid(batch)
    assert kept["image"].shape == (2, 3, 32, 32) and kept["label"].tolist() == [0, 1] and "broken" not in kept
    assert torch.equal(views.__getitems__([2])["noise"][0], batch["noise"][2])


@pytest.mark.parametrize(
    ("world_size", "batch_size", "accumulate"), [(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 2, 3), (4, 1, 3)]
)
def test_global_batches_do_not_depend_on_the_machines(world_size: int, batch_size: int, accumulate: int) -> None:
    """Optimiser step s sees positions 12 s .. 12 s + 11, however they are dealt out; each rank gets equally many."""
    ranks = [
        list(
            PositionSampler(
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                num_batches=5 * accumulate,
                first_batch=2 * accumulate,
            )
        )
        for rank in range(world_size)
    ]
    for step in range(3):
        seen = [p for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate] for p in batch]
        assert sorted(seen) == list(range(12 * (step + 2), 12 * (step + 3)))


@pytest.mark.parametrize("num_photos", [1, 7, 8, 23])
def test_eval_sampler_deals_every_photo_once(num_photos: int) -> None:
    ranks = [list(EvalSampler(num_photos, batch_size=3, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(rank) for rank in ranks}) == 1
    rows = [row for rank in ranks for batch in rank for row in batch if row != PADDING]
    assert sorted(rows) == list(range(num_photos))
    assert np.ptp([sum(map(len, rank)) for rank in ranks]) == 0
