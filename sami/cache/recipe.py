"""Recipe of a cache: all settings that its records depend on, claimed before anything is written.

recipe.json          everything the records depend on; the same for all processes that write
"""

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from sami.files import sync_folder

FORMAT_VERSION = 1
RECIPE = "recipe.json"
LONGEST = 80  # characters of a value in a message
Recipe = dict[str, Any]


def claim_cache(folder: Path, recipe: Recipe, basis: list | None, fit_basis: Callable[[], list | None]) -> Recipe:
    """Begins a cache, or continues the one that is there: its recipe, with `basis`.

    Args:
        recipe: everything the records depend on, as JSON has it, without `basis`.
        basis: mean and components that targets have to be stored in; None where that is free.
        fit_basis: gives them, or None for all channels; called only to begin. Of many processes that begin at once,
            all take the basis of the first.

    Raises:
        ValueError: the folder cannot be written, or holds a cache made from something else.
    """
    begun = find_recipe(folder, recipe)
    if begun is None:
        text = json.dumps({**recipe, "basis": basis or fit_basis()}, indent=1) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            create_once(folder / RECIPE, text)
        except OSError as error:
            raise ValueError(f"cannot write into {folder} ({error.strerror}): give a folder of yours") from error
        begun = find_recipe(folder, recipe)  # perhaps another process's
        assert begun is not None
    if basis is not None and begun["basis"] != basis:
        raise ValueError(
            f"{folder} stores other principal components than the training split beside it: delete it, and write again"
        )
    return begun


def find_recipe(folder: Path, recipe: Recipe) -> Recipe | None:
    """The recipe of the cache that was begun in this folder, None if there is none.

    Raises:
        ValueError: it is of another version, or made from something else.
    """
    path = folder / RECIPE
    if not path.exists():
        return None
    before = read_json(path)
    if before.get("format") != FORMAT_VERSION:
        raise ValueError(other_version(path, before))
    differences = compare(before, json.loads(json.dumps(recipe)), without=["basis"])
    if differences:
        outdated = any(line.startswith("transform.version:") for line in differences)
        go_on = "Use the same settings to continue it, or another path to begin a new one."
        advice = "Give a new path= and write it again." if outdated else go_on
        raise ValueError(
            f"{folder} is a cache made from something else:\n  " + "\n  ".join(differences) + f"\n{advice}"
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


def compare(before: dict, now: dict, *, without: Collection[str] = (), prefix: str = "") -> list[str]:
    """The differences of two nested recipes, one line each."""
    lines = []
    for name in sorted((before.keys() | now.keys()).difference(without)):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += compare(a, b, prefix=f"{prefix}{name}.")
        elif a != b:
            why = " (sami makes other pixels of an image since: write the cache again)" if name == "version" else ""
            lines.append(f"{prefix}{name}: {shorten(a)} in the cache, {shorten(b)} now{why}")
    return lines


def shorten(value: Any) -> str:
    """Of long lists the beginning."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def other_version(path: Path, content: dict) -> str:
    """The message about a cache of another version of this project."""
    return (
        f"{path} has format {content.get('format')}, this version reads and writes format {FORMAT_VERSION}: "
        "write the cache again into a new folder, or use the version of sami that wrote it"
    )


def read_json(path: Path) -> dict:
    """The object in a file. Raises ValueError: it is damaged."""
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
