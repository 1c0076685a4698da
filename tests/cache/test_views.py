import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_image, encode, write_folder

from sami.cache.layout import CacheLayout
from sami.cache.recipe import FORMAT_VERSION, claim_cache, compare
from sami.cache.views import ShardSampler, ViewsToCache
from sami.data.crops import RandomCrops, crop_and_resize
from sami.data.datasets import EvalSet, TrainSet
from sami.data.pretraining import CenterCrop, RandomCrop
from sami.data.sampling import ShuffledOrder, Stream
from sami.data.sources.images import FolderSource

CROPS = RandomCrops((0.2, 1.0), (0.75, 1.33), 0.5)


def test_fixed_views_are_those_that_training_draws(tmp_path: Path) -> None:
    source = FolderSource(str(write_folder(tmp_path, 8)))
    written = ViewsToCache(source, image_size=32, crops=CROPS, seed=3)
    order = ShuffledOrder(source.counts, seed=9, window=1, epoch_size=8)
    crop = RandomCrop(32, 4, CROPS, seed=3, num_views=2)
    trained = TrainSet(source, order, crop, seed=3, stream=Stream.PRETRAINING)
    for epoch in range(3):
        batch = trained.__getitems__(list(range(8 * epoch, 8 * epoch + 8)))
        places = [(*order.locate(position), epoch % 2) for position in batch["position"].tolist()]
        assert torch.equal(written.__getitems__(places)["image"], batch["image"])


def test_centres_are_those_that_validation_sees(tmp_path: Path) -> None:
    source = FolderSource(str(write_folder(tmp_path, 5)))
    written = ViewsToCache(source, image_size=32, crops=None, seed=0).__getitems__([(0, row, 0) for row in range(5)])
    crop = CenterCrop(32, 4)
    seen = EvalSet(source, crop, crop.blank(), seed=0, stream=Stream.PRETRAINING_VAL).__getitems__(list(range(5)))
    assert torch.equal(written["image"], seen["image"])


def test_the_head_says_what_was_seen(tmp_path: Path) -> None:
    source = FolderSource(str(write_folder(tmp_path, 2)))
    (tmp_path / "class_0" / "image_000.jpg").write_bytes(b"no image")
    batch = ViewsToCache(source, image_size=32, crops=CROPS, seed=3).__getitems__([(0, 0, 1), (0, 1, 4)])
    head, data = batch["head"], source.read(0, 1).image
    assert head["valid"].tolist() == [False, True] and [where for where, _ in batch["broken"]] == [source.name(0, 0)]
    assert (head["row"].tolist(), head["view"].tolist()) == ([0, 1], [1, 4])
    assert head[1]["size"].tolist() == [48, 64] and head[1]["photo"] == zlib.crc32(data)
    again = crop_and_resize(data, tuple(head[1]["box"].tolist()), 32, flip=bool(head[1]["flip"]))
    assert torch.equal(again, batch["image"][1]) and not batch["image"][0].any()


def test_padding_and_broken_images_do_not_count(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(64, 64), (33, 64), (64, 32)]):
        image = draw_image(number, height=height, width=width)
        (tmp_path / f"{number}.png").write_bytes(encode(image, "PNG"))
    (tmp_path / "3.png").write_bytes(b"no image")
    source = FolderSource(str(tmp_path))
    views = ViewsToCache(source, image_size=64, crops=CROPS, seed=0, whole=True)
    batch = views.__getitems__([(0, row, 0) for row in range(4)])
    counted = views.valid_tokens(batch["head"], (4, 4)).reshape(4, 4, 4)
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    expected[0] = True
    expected[1, :3] = True  # 33 of 64 rows reach into the third row of tokens
    expected[2, :, :2] = True
    assert torch.equal(counted, expected)
    views.whole = False
    assert views.valid_tokens(batch["head"], (4, 4)).sum(1).tolist() == [16, 16, 16, 0]


def test_batches_end_with_their_shard() -> None:
    parts = list(CacheLayout([5, 4], 3).shards(2))
    batches = list(ShardSampler(parts, batch_size=2))
    assert len(batches) == len(ShardSampler(parts, batch_size=2)) == 10
    assert [place for batch in batches for place in batch] == [
        (part.unit, part.first_row + row, part.view) for part in parts for row in range(part.num_images)
    ]
    assert max(len(np.unique([place[2] for place in batch])) for batch in batches) == 1


def test_a_cache_of_other_pixels_is_told_apart() -> None:
    now = ViewsToCache(None, image_size=32, crops=None, seed=0).describe()
    (line,) = compare({"transform": {**now, "version": 1}}, {"transform": now})
    assert line.startswith("transform.version: 1 in the cache, 2 now") and "write the cache again" in line


@pytest.mark.parametrize(
    ("before", "advice"),
    [
        ({"version": 1, "flip": 0.5}, "Give a new path= and write it again"),
        ({"version": 2, "flip": 0.1}, "Use the same"),
    ],
)
def test_a_cache_of_other_pixels_cannot_be_continued(tmp_path: Path, before: dict, advice: str) -> None:
    claim_cache(tmp_path, {"format": FORMAT_VERSION, "transform": before}, None, lambda: None)
    now = {"format": FORMAT_VERSION, "transform": {"version": 2, "flip": 0.5}}
    with pytest.raises(ValueError, match="made from something else") as refused:
        claim_cache(tmp_path, now, None, lambda: None)
    assert str(refused.value).splitlines()[-1].startswith(advice)
