"""A teacher that says of a crop what it says of the whole has no gap; one that looks around has."""

from pathlib import Path
from threading import Event

import pytest
import torch
import torch.nn.functional as F
from conftest import draw_photo, encode
from torch import Tensor

from sami.cache.map_gap import map_gap
from sami.cache.split import CacheOptions, CacheTask, RunningTeacher
from sami.cache.views import ViewsToCache
from sami.cache.write import write_split
from sami.data.photos import PhotoData
from sami.models.teachers import Teacher


class Colours(Teacher):
    """The mean colour of each patch, which moves with the image; `around` adds the mean of the whole image."""

    width = 3

    def __init__(self, around: float) -> None:
        super().__init__(16)
        self.around = around

    def target(self, image: Tensor) -> Tensor:
        local = F.avg_pool2d(image, 16).flatten(2).transpose(1, 2)  # [B, N, 3]
        return local + self.around * image.mean(dim=(2, 3)).unsqueeze(1)


def gaps(tmp_path: Path, around: float, *, flip: float) -> dict[str, tuple[float, float]]:
    """Of smooth photos of two shapes."""
    for number in range(6):
        height, width = (160, 256) if number % 2 else (256, 200)
        photo = draw_photo(number, height=height, width=width, grain=60)
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.png").write_bytes(encode(photo, "PNG"))
    data = PhotoData(
        str(tmp_path / "photos"), None, image_size=64, patch_size=16, seed=0, num_workers=0, shuffle_window=1,
        scale=(0.2, 0.5), ratio=(0.75, 1.33), flip=flip, num_views=None, cache=None, val_batch_size=4,
    )  # fmt: skip
    options = CacheOptions(
        path=str(tmp_path / f"cache{around}{flip}"), kind="maps", num_views=1, storage="fp16", channels=None,
        map_size=256, precision="32", batch_size=4, shard_size=4, num_workers=0, max_broken_rate=0.0,
    )  # fmt: skip
    views = ViewsToCache(data.train_source, side=256, crops=data.crops, seed=0, whole=True)
    running = RunningTeacher(Colours(around), precision="32", device=torch.device("cpu"))
    task = CacheTask("train", options, views, running.network, {"_target_": "Colours"})
    write_split(task, running, task.claim(running, None), (0, 1), Event())
    assert task.finish() == 0
    return map_gap(task, data, running, 6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_local_teacher_has_no_gap(tmp_path: Path, flip: float) -> None:
    """Boxes, flips and the frame of the map are right: a shift by half a cell would show."""
    for cosine, explained in gaps(tmp_path, 0.0, flip=flip).values():
        assert cosine > 0.995 and explained > 0.985


def test_a_teacher_that_looks_around_has_one(tmp_path: Path) -> None:
    for _, explained in gaps(tmp_path, 3.0, flip=0.5).values():
        assert explained < 0.95
