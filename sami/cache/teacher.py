"""A teacher whose targets are read from a cache instead of computed.

B images   gh gw the student's token grid, N = gh*gw   E target width
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sami.cache.codec import TargetCodec
from sami.cache.manifest import open_manifest, recipe_digest
from sami.cache.reader import TARGET
from sami.models.teachers import Statistics, Teacher


class CachedTeacher(Teacher):
    """Targets from the records that the loader read, instead of a network.

    A cache of views holds the teacher's answer to the very view that the student sees: exact but for the storage. One
    of maps holds its answer to the whole image, and a view's target is the mean of the map over the area of each
    token. That is an approximation: what a network says of a crop is not a crop of what it says of the whole.

    Args:
        path: folder of the cache, as written by `python -m sami.cache`.
        name: the teacher's, to refuse a cache of any other; None takes what is there.
        patch_size: the student's.

    Raises:
        ValueError: see `open_manifest`; or the cache is another teacher's.
    """

    def __init__(self, path: str, name: str | None = None, patch_size: int = 16) -> None:
        super().__init__(patch_size)
        manifest = open_manifest(Path(path, "train"))
        if name not in (None, teacher_name(manifest)):
            raise ValueError(f"name={name}, but the cache {path} holds targets of {teacher_name(manifest)}")
        self.codec, self.width = build_codec(manifest), manifest["width"]
        self.grid, self.holds_maps = tuple(manifest["grid"]), manifest["kind"] == "maps"
        self.fingerprint = recipe_digest(manifest)  # of what the cache is made from
        mean, variance = (torch.tensor(manifest["statistics"][key]) for key in ("mean", "variance"))
        self.statistics = Statistics(mean, variance, manifest["statistics"]["tokens"])
        self.description = describe(manifest)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The entries of `CacheReader.entries` -> float32 [B, N, E], tokens in image order."""
        stored = {name: batch[TARGET + name] for name in ("values", "center", "scale") if TARGET + name in batch}
        if not self.holds_maps:
            return self.codec.decode(stored)
        H, W = batch["image"].shape[-2:]
        wanted = (H // self.patch_size, W // self.patch_size)
        regions, flip = batch[TARGET + "region"], batch[TARGET + "flip"]
        return self.codec.decode_crop(stored, regions, flip, given=self.grid, wanted=wanted)


def build_codec(recipe: dict[str, Any]) -> TargetCodec:
    """How the targets of this cache are stored."""
    basis = None
    if recipe["basis"]:
        mean, components = (torch.tensor(part) for part in recipe["basis"])
        basis = mean, components
    return TargetCodec(recipe["storage"], recipe["width"], basis)


def teacher_name(recipe: dict[str, Any]) -> str:
    """The teacher's name, or that of its class."""
    return recipe["teacher"].get("name") or recipe["teacher"]["_target_"].rpartition(".")[2]


def describe(manifest: dict[str, Any]) -> str:
    """A cache in one line."""
    channels = f", {manifest['channels']} of {manifest['width']} channels" if manifest["basis"] else ""
    what = "maps of whole images (an approximation)" if manifest["kind"] == "maps" else "views per image"
    return (
        f"{teacher_name(manifest)} (weights {manifest['teacher_weights']}) on {manifest['photos']['count']} images: "
        f"{manifest['num_views']} {what}, {manifest['grid'][0]}x{manifest['grid'][1]}x{manifest['width']}, "
        f"{manifest['storage']}{channels}, mean cosine to the exact target {manifest['error']['cosine']:.6f}"
    )
