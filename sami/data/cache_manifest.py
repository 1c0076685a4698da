"""What a cache says of itself.

    recipe.json          what it is made from; written first, and the same for all who write
    view00-000000.tar    records of one view of some photos, see `cache_records`
    view00-000000.json   that shard's size, hash, sums of targets, photos left out; written after it
    manifest.json        everything together; written when the last shard is there

E target width
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sami.data.cache_layout import CacheLayout, ShardPart
from sami.data.cache_records import RecordFormat
from sami.data.whole_file import sync_folder, whole_file
from sami.data.write_shards import write_text

FORMAT_VERSION = 1
RECIPE, MANIFEST = "recipe.json", "manifest.json"
SHARD_FACTS = ("photos", "bytes", "sha256", "skipped")
Recipe = dict[str, Any]


def claim_cache(folder: Path, recipe: Recipe, fit_basis: Callable[[], list | None]) -> Recipe:
    """Begins a cache, or continues the one that is there: its recipe, with `basis`.

    Args:
        recipe: everything the records depend on, as JSON has it, without `basis`.
        fit_basis: mean and components to store targets in, or None; called only to begin. Of many processes that
            begin at once, all take the basis of the first.

    Raises:
        ValueError: the folder cannot be written, or holds a cache made from something else.
    """
    path = folder / RECIPE
    begun = None if path.exists() else json.dumps({**recipe, "basis": fit_basis()}, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if begun is not None:
            create_once(path, begun)
    except OSError as error:
        raise ValueError(f"cannot write into {folder} ({error.strerror}): give a folder of yours") from error
    before = read_json(path)
    if before.get("format") != FORMAT_VERSION:
        raise ValueError(other_version(path, before))
    differences = compare(before, json.loads(json.dumps(recipe)), without={"basis"})
    if differences:
        raise ValueError(
            f"{folder} is a cache made from something else:\n  " + "\n  ".join(differences) + "\n"
            "Use the same settings to continue it, or another cache.path=... to begin a new one."
        )
    return before


def create_once(path: Path, text: str) -> None:
    """Writes a file, unless somebody else has done so in the meantime."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(8).hex()}.tmp")
    try:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # the one call that both creates a complete file and refuses to replace one
        except FileExistsError:
            return
        except OSError:  # a file system without links: two that begin in the same instant are not told apart there
            if not path.exists():
                os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def compare(before: dict, now: dict, *, without: set[str] = frozenset(), prefix: str = "") -> list[str]:
    """The differences of two nested recipes, one line each."""
    lines = []
    for name in sorted((before.keys() | now.keys()) - without):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += compare(a, b, prefix=f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a} in the cache, {b} now")
    return lines


def other_version(path: Path, content: dict) -> str:
    """The message about a cache of another version of this project."""
    return (
        f"{path} has format {content.get('format')}, this version reads and writes format {FORMAT_VERSION}: "
        "write the cache again into a new folder, or use the version of sami that wrote it"
    )


def read_json(path: Path) -> dict:
    """The object in a file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}). A manifest can be deleted, `write` makes it again; without its recipe a "
            "cache is lost"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def note_of(folder: Path, part: ShardPart) -> Path:
    """The file beside a shard that tells of it."""
    return (folder / part.name).with_suffix(".json")


def is_written(folder: Path, part: ShardPart) -> bool:
    """Whether a shard is complete: it and a whole note are there, and it has the size that the note says."""
    shard, note = folder / part.name, note_of(folder, part)
    try:
        return shard.stat().st_size == json.loads(note.read_text(encoding="utf-8"))["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def record_format(recipe: Recipe) -> RecordFormat:
    """The layout of the records."""
    return RecordFormat(recipe["storage"], recipe["grid"][0] * recipe["grid"][1], recipe["channels"])


def finish_cache(folder: Path, layout: CacheLayout, num_views: int) -> int:
    """Writes the manifest if all shards of all views are there. How many are not.

    Every process may call this when it is done; the last one finds nothing missing.
    """
    parts = list(layout.shards(num_views))
    num_missing = sum(not is_written(folder, part) for part in parts)
    if num_missing:
        return num_missing
    recipe = read_json(folder / RECIPE)
    notes = {part.name: read_json(note_of(folder, part)) for part in parts}
    sums = {name: np.sum([note[name] for note in notes.values()], axis=0) for name in ("sum", "sum_of_squares")}
    num_tokens, num_stored = (sum(note[name] for note in notes.values()) for name in ("tokens", "views"))
    mean = sums["sum"] / max(num_tokens, 1)
    variance = sums["sum_of_squares"] / max(num_tokens, 1) - mean**2
    spread = float(variance.sum() * num_tokens)
    squared_error = sum(note["squared_error"] for note in notes.values())
    manifest = {
        **recipe,
        "num_views": num_views,
        "statistics": {"tokens": num_tokens, "mean": mean.tolist(), "variance": variance.clip(0).tolist()},
        "error": {
            "cosine": sum(note["cosine"] for note in notes.values()) / max(num_stored, 1),
            "worst_cosine": min(note["worst_cosine"] for note in notes.values()),
            "worst_relative_error": max(note["worst_relative_error"] for note in notes.values()),
            "explained_variance": 1 - squared_error / spread if spread else 1.0,
        },
        "shards": {name: {key: note[key] for key in SHARD_FACTS} for name, note in notes.items()},
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return 0


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
            else f"{folder} holds no cache: make one with python -m sami.cache write cache.path={folder.parent} ..."
        )
    manifest = read_json(path)
    if manifest.get("format") != FORMAT_VERSION:
        raise ValueError(other_version(path, manifest))
    if missing := {"shards", "statistics", "error", "num_views", "basis"} - manifest.keys():
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


def manifest_digest(manifest: dict[str, Any]) -> str:
    """A fingerprint of a whole cache: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_note(folder: Path, part: ShardPart, note: dict[str, Any]) -> None:
    """Tells of a shard that has just been written, which makes it count."""
    with whole_file(note_of(folder, part)) as file:
        file.write((json.dumps({**note, "sha256": file_digest(folder / part.name)}) + "\n").encode())
