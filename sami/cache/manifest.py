"""Manifest of a cache and notes of its shards: what it is made from, sizes, hashes, statistics of its targets.

    recipe.json          what it is made from, see `cache.recipe`
    view00-000000.tar    records of one view of some images, see `cache.records`
    view00-000000.json   that shard's size, hash, sums of targets, images left out; written after it
    manifest.json        everything together; written when the last shard is there

E target width
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sami.cache.layout import CacheLayout, ShardPart
from sami.cache.recipe import FORMAT_VERSION, RECIPE, Recipe, other_version, read_json
from sami.cache.records import RecordFormat
from sami.data.shards import write_text
from sami.files import whole_file

MANIFEST = "manifest.json"
TOTALS = ("views", "tokens", "cosine", "squared_error", "sum", "sum_of_squares")  # of a note, added up over shards
MEASURED = {"num_views", "statistics", "error", "shards"}  # what a manifest adds to the recipe
SHARD_FACTS = ("photos", "bytes", "sha256", "skipped")


def note_of(folder: Path, part: ShardPart) -> Path:
    """The file beside a shard that tells of it."""
    return (folder / part.name).with_suffix(".json")


def read_note(folder: Path, part: ShardPart) -> dict[str, Any] | None:
    """What was noted of a shard; None unless it and a whole note are there, and it has the size that was noted."""
    try:
        note = json.loads(note_of(folder, part).read_text(encoding="utf-8"))
        return note if (folder / part.name).stat().st_size == note["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_format(recipe: Recipe) -> RecordFormat:
    """The layout of the records."""
    return RecordFormat(recipe["storage"], recipe["grid"][0] * recipe["grid"][1], recipe["channels"])


def finish_cache(folder: Path, layout: CacheLayout, num_views: int) -> int:
    """Writes the manifest if all shards of all views are there. How many are not.

    Every process may call this when it is done; the last one finds nothing missing.
    """
    totals = dict.fromkeys(TOTALS, 0) | {"worst_cosine": 1.0, "worst_relative_error": 0.0}
    shards, num_missing = {}, 0
    for part in layout.shards(num_views):
        note = read_note(folder, part)
        if note is None:
            num_missing += 1
            continue
        shards[part.name] = {name: note[name] for name in SHARD_FACTS}
        totals |= {name: totals[name] + np.asarray(note[name]) for name in TOTALS}
        totals["worst_cosine"] = min(totals["worst_cosine"], note["worst_cosine"])
        totals["worst_relative_error"] = max(totals["worst_relative_error"], note["worst_relative_error"])
    if num_missing:
        return num_missing
    manifest = {**read_json(folder / RECIPE), "num_views": num_views, **summarize(totals), "shards": shards}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return 0


def summarize(totals: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of all targets, and of the error of storing them."""
    num_tokens = int(totals["tokens"])
    mean = totals["sum"] / max(num_tokens, 1)
    variance = (totals["sum_of_squares"] / max(num_tokens, 1) - mean**2).clip(0)
    spread = float(variance.sum() * num_tokens)
    error = {
        "cosine": float(totals["cosine"]) / max(int(totals["views"]), 1),
        "worst_cosine": totals["worst_cosine"],
        "worst_relative_error": totals["worst_relative_error"],
        "explained_variance": 1 - float(totals["squared_error"]) / spread if spread else 1.0,
    }
    statistics = {"tokens": num_tokens, "mean": mean.tolist(), "variance": variance.tolist()}
    return {"statistics": statistics, "error": error}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        ValueError: no cache, unfinished, of another version, or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        begun = (folder / RECIPE).exists()
        written = len(list(folder.glob("view*.tar")))
        raise ValueError(
            f"{folder} holds an unfinished cache, {written} shards of it: the same `python -m sami.cache write` again "
            "makes the rest"
            if begun
            else f"{folder} holds no cache: make one with `python -m sami.cache write cache.path={folder.parent} ...`"
        )
    manifest = read_json(path)
    if manifest.get("format") != FORMAT_VERSION:
        raise ValueError(other_version(path, manifest))
    if missing := (MEASURED | {"basis"}) - manifest.keys():
        raise ValueError(f"{path} is damaged: it has no {', '.join(sorted(missing))}. Delete it, and write again")
    return manifest


def open_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache, all shards present at their full size.

    Raises:
        ValueError: see `read_manifest`; or a shard is missing or cut short.
    """
    manifest = read_manifest(folder)
    problems = [line for name, shard in manifest["shards"].items() if (line := size_problem(folder / name, shard))]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(manifest['shards'])} shards of the cache are damaged: {'; '.join(problems[:3])}. "
            "The same `python -m sami.cache write` again makes them anew, and leaves the others as they are"
        )
    return manifest


def size_problem(path: Path, shard: dict) -> str:
    """What is wrong with a shard's size, "" if nothing is."""
    if not path.exists():
        return f"{path} is missing"
    size = path.stat().st_size
    return "" if size == shard["bytes"] else f"{path} has {size} bytes instead of {shard['bytes']}"


def recipe_digest(manifest: dict[str, Any]) -> str:
    """A fingerprint of what a cache is made from: 16 hexadecimal digits, the same when a shard is made again."""
    recipe = {name: value for name, value in manifest.items() if name not in MEASURED}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_note(folder: Path, part: ShardPart, note: dict[str, Any]) -> None:
    """Tells of a shard that has just been written, which makes it count."""
    with whole_file(note_of(folder, part)) as file:
        file.write((json.dumps({**note, "sha256": file_digest(folder / part.name)}) + "\n").encode())
