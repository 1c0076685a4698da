"""One split of a cache to write: options, recipe, shards that remain, and the frozen teacher on its device.

B images   S pixels per side   N tokens   E target width
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sami.cache.codec import STORAGES
from sami.cache.layout import CacheLayout, ShardPart
from sami.cache.manifest import finish_cache, read_manifest, read_note
from sami.cache.reader import describe_images
from sami.cache.recipe import FORMAT_VERSION, Recipe, claim_cache, find_recipe
from sami.cache.views import ViewsToCache
from sami.cli import print0
from sami.data.crops import normalize, normalize_padded
from sami.data.datasets import Batch
from sami.data.loading import BatchLoader
from sami.data.sampling import locate_in_file_order
from sami.models.teachers import Teacher
from sami.ops.pca import fit_pca

KINDS = ("views", "maps")
AUTOCAST = {32: None, "32": None, "32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PCA_TOKENS = 50_000  # enough for a covariance of 1,280 channels, if they come from
PCA_IMAGES = 64  # at least


@dataclass(frozen=True)
class CacheOptions:
    """The choices of `conf/cache.yaml`, section `cache`.

    Raises:
        ValueError: a choice that does not exist, or a number out of range.
    """

    path: str  # folder of the cache; splits are folders in it
    kind: str  # views (what the teacher says of each fixed view) or maps (what it says of each whole image)
    num_views: int  # K, of each training image; maps have one
    storage: str  # fp32, fp16 or int8
    channels: int | None  # principal components that are kept; None keeps all channels
    map_size: int  # pixels per side of a whole image, padded, for maps
    precision: str | int  # of the teacher, as Lightning spells it
    batch_size: int  # images that are loaded and pass the teacher at once
    shard_size: int  # images of a shard, at most
    num_workers: int  # loading processes
    max_broken_rate: float  # broken images over all above which writing stops

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose {' or '.join(KINDS)}")
        if self.storage not in STORAGES:
            raise ValueError(f"storage={self.storage!r}: choose {', '.join(STORAGES)}")
        if self.precision not in AUTOCAST:
            raise ValueError(f"precision={self.precision!r}: choose {', '.join(map(str, AUTOCAST))}")
        for name in ("num_views", "batch_size", "shard_size", "map_size", "channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: give a number from 1")
        if self.num_views > 100:
            raise ValueError(f"num_views={self.num_views}: give at most 100, shards number them by two digits")


class RunningTeacher:
    """A frozen network on its device, in its precision: batches of `ViewsToCache` -> targets.

    Args:
        network: the teacher.
        precision: see `CacheOptions`.
        device: where it runs.
    """

    def __init__(self, network: Teacher, *, precision: str | int, device: torch.device) -> None:
        self.network, self.device = network.to(device), device
        self.dtype = AUTOCAST[precision]

    def __call__(self, batch: Batch, *, whole: bool) -> Tensor:
        """`image` uint8 [B, 3, S, S] -> float32 [B, N, E]."""
        image = batch["image"].to(self.device, non_blocking=True)
        return self.ask(normalize_padded(image, batch["head"]["size"].tolist()) if whole else normalize(image))

    @torch.no_grad()
    def ask(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], normalised -> float32 [B, N, E]."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.network({"image": image}).float()


class CacheSplit:
    """One split of a cache.

    Args:
        name: train or val.
        options: see there.
        views: the images as the teacher is to see them.
        teacher: the network.
        teacher_settings: how it was built, without where its weights lie; part of the recipe.

    Raises:
        ValueError: the images are no whole number of the teacher's patches, or more channels are asked for than it has.
    """

    def __init__(
        self, name: str, options: CacheOptions, views: ViewsToCache, teacher: Teacher, teacher_settings: dict[str, Any]
    ) -> None:
        size, patch_size = views.image_size, teacher.patch_size
        if size % patch_size:
            raise ValueError(f"images of {size} pixels are no whole number of patches of {patch_size}")
        if (options.channels or 0) > teacher.width:
            raise ValueError(f"channels={options.channels}: targets have {teacher.width}; null keeps all of them")
        self.name, self.options, self.views = name, options, views
        self.teacher, self.teacher_settings = teacher, teacher_settings
        self.folder, self.source = Path(options.path, name), views.source
        self.num_views = options.num_views if views.crops else 1
        self.layout = CacheLayout(self.source.counts, options.shard_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a target."""
        cells = self.views.image_size // self.teacher.patch_size
        return cells, cells

    @property
    def channels(self) -> int:
        """Stored of each token."""
        return self.options.channels or self.teacher.width

    @cached_property
    def num_records(self) -> int:
        """Views of images."""
        return self.num_views * sum(self.source.counts)

    def describe(self) -> Recipe:
        """Everything the records depend on, but for the basis, which is measured."""
        return {
            "format": FORMAT_VERSION,
            "kind": self.options.kind,
            "split": self.name,
            "teacher": self.teacher_settings,
            "teacher_weights": self.teacher.fingerprint,
            "precision": str(self.options.precision),
            "image_size": self.views.image_size,
            "grid": list(self.grid),
            "width": self.teacher.width,
            "storage": self.options.storage,
            "channels": self.channels,
            "transform": self.views.describe(),
            "photos": describe_images(self.source),
            "shard_size": self.options.shard_size,
        }

    def claim(self, running: RunningTeacher, basis: list | None) -> Recipe:
        """Begins this split, or continues it; `basis` is taken where one is given, else measured if one is needed.

        Raises:
            ValueError: see `check_claim` and `claim_cache`.
        """
        self.check_claim()
        return claim_cache(self.folder, self.describe(), basis, lambda: self.fit_basis(running))

    def check_claim(self) -> None:
        """Refuses what `claim` would refuse later.

        Raises:
            ValueError: the cache is made from something else, or holds more views than are asked for.
        """
        find_recipe(self.folder, self.describe())
        held = 0
        with suppress(ValueError):  # no manifest, or a damaged one, which is written again
            held = read_manifest(self.folder)["num_views"]
        if held > self.num_views:
            raise ValueError(
                f"{self.folder} holds {held} views, num_views={self.num_views} would drop some. Training "
                f"takes fewer of them with num_views={self.num_views} of its data"
            )

    def fit_basis(self, running: RunningTeacher) -> list | None:
        """Mean and components of the targets of some images, spread over all; None where all channels are kept."""
        if self.channels == self.teacher.width:
            return None
        num_images = max(PCA_IMAGES, -(-PCA_TOKENS // (self.grid[0] * self.grid[1])))
        print0(f"measuring principal components on {num_images} images")
        tokens = []
        for batch in self.sample(num_images):
            token_valid = self.views.valid_tokens(batch["head"], self.grid)  # [B, N]
            tokens.append(running(batch, whole=self.views.whole).cpu()[token_valid])
        return [part.tolist() for part in fit_pca(torch.cat(tokens), self.channels)]

    def sample(self, num_images: int) -> BatchLoader:
        """Batches of a view of some images each, at equal distances in the whole split."""
        total = sum(self.source.counts)
        numbers = torch.linspace(0, total - 1, min(num_images, total)).long().unique().tolist()
        indices = [(*locate_in_file_order(self.source.counts, number), number % self.num_views) for number in numbers]
        batches = [indices[i : i + self.options.batch_size] for i in range(0, len(indices), self.options.batch_size)]
        return BatchLoader(self.views, batches, num_workers=self.options.num_workers)

    def remaining(self, share: tuple[int, int]) -> list[ShardPart]:
        """The shards of this share (number, count) that are not written yet."""
        number, count = share
        mine = list(self.layout.shards(self.num_views))[number::count]
        return [part for part in mine if read_note(self.folder, part) is None]

    def finish(self) -> int:
        """Completes the split if all its shards are there. How many are not."""
        return finish_cache(self.folder, self.layout, self.num_views)
