"""The files that a cache describes itself with."""

import hashlib
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from sami.cache.layout import CacheLayout, ShardPart
from sami.cache.manifest import (
    MANIFEST,
    finish_cache,
    open_manifest,
    read_manifest,
    read_note,
    recipe_digest,
    record_format,
    write_note,
)
from sami.cache.recipe import RECIPE, claim_cache, compare
from sami.cache.records import EXTENSION, HEAD
from sami.data.shards import write_shard

NUM_VIEWS, N, E = 2, 4, 3
LAYOUT = CacheLayout([5, 2], 3)
RECIPE_HERE = {
    **{"format": 1, "storage": "fp32", "grid": [2, 2], "width": E, "channels": E, "shard_size": 3},
    "teacher": {"name": "pixels", "size": {"depth": 2}},
}


def draw_target(part: ShardPart) -> np.ndarray:
    """[images, N, E] float64, of a mean and spread of its own."""
    rng = np.random.default_rng([part.view, part.unit, part.first_row])
    return rng.normal(part.first_row - 50, 1 + part.view, (part.num_images, N, E)) * [1, 10, 0]


def write_part(folder: Path, part: ShardPart) -> None:
    """A shard and its note."""
    target, layout = draw_target(part), record_format(RECIPE_HERE)
    head = np.zeros((), dtype=HEAD)[()]
    head["valid"] = True
    files = [layout.pack(head, {"values": values.astype(np.float32)}) for values in target]
    write_shard(folder / part.name, ({"__key__": str(i), EXTENSION: data} for i, data in enumerate(files)))
    note = {"photos": part.num_images, "bytes": (folder / part.name).stat().st_size, "skipped": {}}
    note |= {"views": part.num_images, "tokens": part.num_images * N}
    note |= {"sum": target.sum((0, 1)).tolist(), "sum_of_squares": np.square(target).sum((0, 1)).tolist()}
    cosine = 0.9 + part.first_row / 100  # of each image
    note |= {"cosine": cosine * part.num_images, "worst_cosine": cosine, "worst_relative_error": part.first_row / 10}
    write_note(folder, part, {**note, "squared_error": 7.0})


def write_all(folder: Path) -> list[ShardPart]:
    claim_cache(folder, RECIPE_HERE, None, lambda: None)
    parts = list(LAYOUT.shards(NUM_VIEWS))
    for part in parts:
        write_part(folder, part)
    return parts


def begin_together(folder: Path, number: int, barrier, results) -> None:
    """The body of a process: all find no cache, and come back with a basis one after another."""

    def fit_basis() -> list:
        barrier.wait(30)
        time.sleep(0.05 * number)
        return [[float(number)] * E, [[float(number)]] * E]

    results.put(claim_cache(folder, RECIPE_HERE, None, fit_basis)["basis"])


def test_of_many_that_begin_at_once_all_take_the_basis_of_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=begin_together, args=(tmp_path, n, barrier, results)) for n in range(4)]
    for process in processes:
        process.start()
    bases = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert bases == [json.loads((tmp_path / RECIPE).read_text())["basis"]] * 4 and bases[0]
    assert list(tmp_path.iterdir()) == [tmp_path / RECIPE]


def test_a_cache_is_continued_with_the_basis_it_has(tmp_path: Path) -> None:
    def never() -> None:
        raise AssertionError("measured again")

    begun = claim_cache(tmp_path / "new" / "train", RECIPE_HERE, None, lambda: [[1.5], [[0.1]]])
    assert begun == {**RECIPE_HERE, "basis": [[1.5], [[0.1]]]}
    as_given = {**RECIPE_HERE, "grid": (2, 2)}  # JSON knows no tuples
    assert claim_cache(tmp_path / "new" / "train", as_given, None, never) == begun


def test_differences_are_named(tmp_path: Path) -> None:
    claim_cache(tmp_path, RECIPE_HERE, None, lambda: None)
    other = {**RECIPE_HERE, "grid": [4, 4], "teacher": {"name": "hog", "size": {"depth": 2}}, "precision": "32"}
    with pytest.raises(ValueError) as error:
        claim_cache(tmp_path, other, None, lambda: None)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path} is a cache made from something else:" and "another path" in lines[-1]
    assert [line.strip() for line in lines[1:-1]] == [
        "grid: [2, 2] in the cache, [4, 4] now",
        "precision: None in the cache, 32 now",
        "teacher.name: pixels in the cache, hog now",
    ]


def test_comparison_reaches_every_depth() -> None:
    before = {"a": {"b": {"c": 1, "d": [1, 2]}}, "e": 1, "f": {"g": 1}}
    assert compare(before, json.loads(json.dumps(before))) == []
    now = {"a": {"b": {"c": 2, "d": [2, 1]}}, "f": 3, "h": 4}
    assert [line.partition(":")[0] for line in compare(before, now)] == ["a.b.c", "a.b.d", "e", "f", "h"]
    assert [line.partition(":")[0] for line in compare(before, now, without={"a", "h"})] == ["e", "f"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write into .*file/train \(Not a directory\): give a folder of yours"):
        claim_cache(tmp_path / "file" / "train", RECIPE_HERE, None, lambda: None)


def test_other_versions_are_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    finish_cache(tmp_path, LAYOUT, NUM_VIEWS)
    for name in (RECIPE, MANIFEST):
        content = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**content, "format": 2}))
    message = r"{}/{} has format 2, this version reads and writes format 1"
    with pytest.raises(ValueError, match=message.format(tmp_path, RECIPE)):
        claim_cache(tmp_path, RECIPE_HERE, None, lambda: None)
    with pytest.raises(ValueError, match=message.format(tmp_path, MANIFEST)):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ['{"format": 1, "kin', "", "[1, 2]", "\udcff"])
def test_damaged_files_are_named(tmp_path: Path, content: str) -> None:
    for name in (RECIPE, MANIFEST):
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"{tmp_path}/{RECIPE} is damaged"):
        claim_cache(tmp_path, RECIPE_HERE, None, lambda: None)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{MANIFEST} is damaged"):
        open_manifest(tmp_path)


def test_a_shard_counts_once_it_and_its_note_are_whole(tmp_path: Path) -> None:
    part = next(LAYOUT.shards(1))
    shard = tmp_path / part.name
    assert read_note(tmp_path, part) is None
    write_part(tmp_path, part)
    assert read_note(tmp_path, part) is not None
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-1]), shard.unlink, shard.with_suffix(".json").unlink):
        write_part(tmp_path, part)
        damage()
        assert read_note(tmp_path, part) is None


def test_nothing_is_finished_while_a_shard_is_missing(tmp_path: Path) -> None:
    parts = write_all(tmp_path)
    for part in parts:
        for path in (tmp_path / part.name, (tmp_path / part.name).with_suffix(".json")):
            content = path.read_bytes()
            path.unlink()
            assert finish_cache(tmp_path, LAYOUT, NUM_VIEWS) == 1
            assert not (tmp_path / MANIFEST).exists()
            path.write_bytes(content)
    assert finish_cache(tmp_path, LAYOUT, NUM_VIEWS + 1) == len(parts) / NUM_VIEWS
    with pytest.raises(ValueError, match=rf"{tmp_path} holds an unfinished cache, {len(parts)} shards of it"):
        open_manifest(tmp_path)
    assert finish_cache(tmp_path, LAYOUT, NUM_VIEWS) == 0
    assert open_manifest(tmp_path)["num_views"] == NUM_VIEWS


def test_a_manifest_says_what_its_shards_hold(tmp_path: Path) -> None:
    parts = write_all(tmp_path)
    finish_cache(tmp_path, LAYOUT, NUM_VIEWS)
    manifest = open_manifest(tmp_path)
    assert {**RECIPE_HERE, "basis": None}.items() <= manifest.items()
    for part in parts:
        content = (tmp_path / part.name).read_bytes()
        facts = {"photos": part.num_images, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert manifest["shards"][part.name] == {**facts, "skipped": {}}
    assert manifest["shards"].keys() == {part.name for part in parts}

    tokens = np.concatenate([draw_target(part).reshape(-1, E) for part in parts])
    statistics, error = manifest["statistics"], manifest["error"]
    assert statistics["tokens"] == len(tokens) == 7 * NUM_VIEWS * N
    np.testing.assert_allclose(statistics["mean"], tokens.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics["variance"], tokens.var(0), rtol=1e-9)
    cosines = [0.9 + part.first_row / 100 for part in parts for _ in range(part.num_images)]
    assert error["cosine"] == pytest.approx(np.mean(cosines)) and error["worst_cosine"] == min(cosines)
    assert error["worst_relative_error"] == max(part.first_row for part in parts) / 10
    assert error["explained_variance"] == pytest.approx(1 - 7 * len(parts) / (tokens.var(0).sum() * len(tokens)))


def test_missing_and_cut_shards_are_named(tmp_path: Path) -> None:
    parts = write_all(tmp_path)
    finish_cache(tmp_path, LAYOUT, NUM_VIEWS)
    missing, cut = tmp_path / parts[1].name, tmp_path / parts[3].name
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-512])
    with pytest.raises(ValueError, match=rf"1 of 6 shards .*: {cut} has {size - 512} bytes instead of {size}\. "):
        open_manifest(tmp_path)
    missing.unlink()
    with pytest.raises(ValueError, match=rf"2 of 6 shards .*: {missing} is missing; {cut} has .* makes them anew"):
        open_manifest(tmp_path)


def test_no_cache_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/train holds no cache: make one .*cache.path={tmp_path}"):
        open_manifest(tmp_path / "train")


def test_the_digest_tells_caches_apart(tmp_path: Path) -> None:
    write_all(tmp_path)
    finish_cache(tmp_path, LAYOUT, NUM_VIEWS)
    manifest = open_manifest(tmp_path)
    digest = recipe_digest(manifest)
    assert len(digest) == 16 and digest == recipe_digest(dict(reversed(manifest.items())))
    manifest["shards"]["view01-000000.tar"]["sha256"] = "0"  # made again, on another machine
    assert recipe_digest(manifest) == digest
    manifest["teacher"]["size"]["depth"] = 3
    assert recipe_digest(manifest) != digest
