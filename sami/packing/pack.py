"""A folder of images to webdataset shards: in shuffled order, by several processes, restartable at any moment."""

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sami.data.decode import IMAGE_EXTENSIONS, list_images
from sami.data.shards import claim_folder, shard_name, write_shard, write_text
from sami.packing.reencode import reencode_files


class ImageFile(NamedTuple):
    """An image to pack."""

    path: str  # below the source folder
    key: str  # in the shard, unique, without dots
    label: int | None  # None when the source has no subfolders


class SkippedList:
    """`skipped.csv`: the images left out, as rows (shard, path, reason).

    A row is on the disk before its shard is, so that a restart, which passes over finished shards, keeps it.

    Args:
        redo: shards about to be made, whose old rows are forgotten.
    """

    def __init__(self, path: Path, redo: Collection[str]) -> None:
        self.path = path
        self.rows: list[tuple[str, str, str]] = []
        if path.exists():
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = list(csv.reader(file))[1:]
                self.rows = [(shard, image, why) for shard, image, why in rows if shard not in redo]

    def count(self, shards: Collection[str]) -> int:
        return sum(shard in shards for shard, _, _ in self.rows)

    def save(self) -> None:
        if self.rows or self.path.exists():
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows([("shard", "path", "reason"), *sorted(self.rows)])
            write_text(self.path, text.getvalue())


def find_images(source: Path) -> tuple[list[ImageFile], list[str]]:
    """The images below a folder, sorted by path, and the names of the classes, [] when there are no subfolders.

    As in ImageNet, each subfolder is a class, numbered in sorted order; folders below it belong to it. Files and
    folders whose names begin with a dot are left out.

    Raises:
        ValueError: no such folder, no image in it, a class without one, or images beside the class folders.
    """
    if not source.is_dir():
        raise ValueError(f"source={source} is not a folder: give the folder that holds the images")
    classes = sorted(entry.name for entry in source.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    paths = sorted((Path(path) for path in list_images(source)), key=lambda path: path.parts)
    if not paths:
        raise ValueError(f"source={source} holds no images ({' '.join(IMAGE_EXTENSIONS)}): give the folder that does")
    loose = [path for path in paths if len(path.parts) == 1]
    if classes and loose:
        raise ValueError(
            f"source={source} holds {len(classes)} folders and also images beside them, {loose[0]} the first: "
            "move them into a folder, whose name is then their class"
        )
    labels = {name: number for number, name in enumerate(classes)}
    if empty := labels.keys() - {path.parts[0] for path in paths}:
        raise ValueError(f"class folders of source={source} without images: {sorted(empty)}: fill or remove them")
    return [ImageFile(str(p), _key(number, p), labels.get(p.parts[0])) for number, p in enumerate(paths)], classes


def pack_images(
    source: Path,
    target: Path,
    *,
    short_side: int | None = None,
    shard_size: int = 1000,
    quality: int = 90,
    prefix: str = "train",
    seed: int = 0,
    num_workers: int | None = None,
    max_broken_rate: float = 0.01,
) -> tuple[int, int]:
    """Pack the images of `source` into `target`; how many were packed and how many left out.

    A shard holds `{key}.jpg|png|webp` and, with classes, `{key}.cls`; beside them lie `classes.json`, the arguments in
    `{prefix}-manifest.json`, and `skipped.csv` (shard, path, reason) when an image was broken. Shards that are there
    are not made again, and the bytes of a shard depend on its images and the arguments, not on interruptions.

    Args:
        short_side: see `reencode`; None copies the files.
        shard_size: images per shard; broken ones leave it smaller.
        quality: of re-encoded JPEGs.
        prefix: shards are called `{prefix}-{index:06d}.tar`.
        seed: of the order, which mixes the classes: a shuffle of a few shards should see them all.
        num_workers: processes; 0 works in this one, None takes one per core.
        max_broken_rate: stop when more than this fraction of all images (rounded up to whole images) is broken.

    Raises:
        ValueError: see `find_images` and `claim_folder`; a number out of range; too many broken images.
    """
    _check_arguments(short_side, shard_size, quality, prefix, seed, num_workers, max_broken_rate)
    source, target = Path(source).resolve(), Path(target).resolve()
    if target.is_relative_to(source):
        raise ValueError(f"target={target} lies inside source={source}, where it would become a class: move it out")
    images, classes = find_images(source)
    _check_classes(target / "classes.json", classes)
    listing = hashlib.sha256(b"\0".join(os.fsencode(image.path) for image in images)).hexdigest()
    arguments = {"short_side": short_side, "shard_size": shard_size, "quality": quality, "seed": seed}
    arguments |= {"images": len(images), "sha256_of_image_paths": listing}
    claim_folder(target, prefix, {"made_by": "sami.pack", "version": 1} | arguments)
    if classes:
        write_text(target / "classes.json", json.dumps(classes, indent=1) + "\n")

    order = np.random.Generator(np.random.PCG64(seed)).random(len(images)).argsort(kind="stable")
    images = [images[i] for i in order]
    starts = range(0, len(images), shard_size)
    shards = {shard_name(prefix, i): images[start : start + shard_size] for i, start in enumerate(starts)}
    todo = {name: shard for name, shard in shards.items() if not (target / name).exists()}
    skipped = SkippedList(target / "skipped.csv", redo=todo)
    num_allowed = math.ceil(max_broken_rate * len(images))

    def samples(name: str) -> Iterator[dict[str, str | bytes]]:
        for image, outcome in zip(shards[name], islice(outcomes, len(shards[name])), strict=True):
            progress.update()
            if not outcome.reason:
                label = {} if image.label is None else {"cls": str(image.label).encode("ascii")}
                yield {"__key__": image.key, outcome.extension: outcome.data} | label
                continue
            skipped.rows.append((name, image.path, outcome.reason))
            if skipped.count(shards) > num_allowed:
                skipped.save()
                raise ValueError(
                    f"more than max_broken_rate={max_broken_rate} of the {len(images)} images are broken, the last "
                    f"{image.path} ({outcome.reason}); all are listed in {skipped.path}: mend them or raise the rate"
                )
        skipped.save()

    paths = [source / image.path for shard in todo.values() for image in shard]
    num_workers = _num_cores() if num_workers is None else num_workers
    with (
        closing(reencode_files(paths, short_side=short_side, quality=quality, num_workers=num_workers)) as outcomes,
        tqdm(desc=f"packing {prefix}", total=len(images), initial=len(images) - len(paths), unit="image") as progress,
    ):
        for name in todo:
            write_shard(target / name, samples(name))
    num_skipped = skipped.count(shards)
    return len(images) - num_skipped, num_skipped


def _key(number: int, path: Path) -> str:
    """The number makes a key unique, the path readable; names above 100 bytes would take a tar header of their own."""
    return f"{number:08d}_" + re.sub("[^A-Za-z0-9-]+", "_", str(path.with_suffix("")))[-80:]


def _num_cores() -> int:
    # a cluster's job may use fewer cores than the machine has
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_classes(path: Path, classes: list[str]) -> None:
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != classes:
        raise ValueError(
            f"{path} lists other classes than the {len(classes)} folders of the source: "
            "splits that share a target must share their classes; give a new target"
        )


def _check_arguments(
    short_side: int | None,
    shard_size: int,
    quality: int,
    prefix: str,
    seed: int,
    num_workers: int | None,
    max_broken_rate: float,
) -> None:
    if short_side is not None and (not isinstance(short_side, int) or short_side < 1):
        raise ValueError(f"short_side={short_side} is in pixels: give a whole number from 1, or null to copy the files")
    if shard_size < 1 or seed < 0 or (num_workers is not None and num_workers < 0):
        raise ValueError(
            f"shard_size={shard_size}, seed={seed}, num_workers={num_workers}: "
            "give a shard size from 1, a seed from 0, and workers from 0 (null: one per core)"
        )
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality} is JPEG's: give a number from 1 to 100")
    if not re.fullmatch("[A-Za-z0-9_-]+", prefix):
        raise ValueError(f"prefix={prefix!r} begins the shards' names: use letters, digits, - and _")
    if not 0 <= max_broken_rate <= 1:
        raise ValueError(f"max_broken_rate={max_broken_rate} is a fraction of the images: give a number from 0 to 1")
