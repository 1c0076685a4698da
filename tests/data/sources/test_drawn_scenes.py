"""The built-in sample: exact masks, classes that colours do not tell, shards that do not depend on interruptions."""

import io
import json

import numpy as np
import pytest
import webdataset
from PIL import Image
from pycocotools import mask as coco_mask

from sami.data.sources import drawn_scenes, drawn_shards
from sami.data.sources.drawn_scenes import CLASSES, FIRST_VAL_INDEX, MIN_AREA, MIN_LARGEST, draw_scene
from sami.data.sources.drawn_shards import write_sample

SCENES = [draw_scene(3, index, size=96) for index in range(60)]


def read(folder, split):
    url = str(folder / f"{split}-000000.tar")
    return list(webdataset.WebDataset(url, shardshuffle=False))


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def write_small(folder, **changes):
    write_sample(folder, **{"num_train": 5, "num_val": 3, "size": 64, "shard_size": 2} | changes)


def test_visible_masks_are_disjoint_and_large_enough():
    for scene in SCENES:
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape[1:] == (96, 96) and scene.masks.dtype == bool
        assert scene.masks.sum(0).max() == 1
        areas = scene.masks.sum((1, 2))
        assert areas.min() >= MIN_AREA and areas.max() >= MIN_LARGEST * 96**2


@pytest.mark.parametrize("index", [246, 1137, 1328])  # the large object is drawn behind others that hide it
def test_the_largest_object_is_never_hidden(index):
    assert draw_scene(3, index, size=64).masks.sum((1, 2)).max() >= MIN_LARGEST * 64**2


def test_masks_follow_what_is_seen(monkeypatch):
    # each object in one flat colour, no light, no noise: pixels of a mask then show a single colour away from edges
    monkeypatch.setattr(drawn_scenes, "_mix_colours", lambda rng, w: np.ones_like(w) * rng.uniform(0, 1, (3, 1, 1)))
    monkeypatch.setattr(drawn_scenes, "_photograph", lambda rng, image: image.transpose(1, 2, 0))
    monkeypatch.setattr(drawn_scenes, "SHADOW", 1e-6)
    draw = drawn_scenes._draw_object

    def draw_flat(*arguments):
        thing = draw(*arguments)
        return thing._replace(colour=np.ones_like(thing.colour) * thing.colour[:, :1, :1])

    monkeypatch.setattr(drawn_scenes, "_draw_object", draw_flat)
    for index in range(20):
        scene = draw_scene(0, index, size=96)
        for mask in scene.masks:
            inner = mask.copy()
            for shift in np.ndindex(3, 3):  # away from the edges, which are smooth
                inner &= np.roll(mask, np.subtract(shift, 1), (0, 1))
            assert not inner.any() or np.ptp(scene.image[inner], axis=0).max() < 1e-3


def test_a_scene_depends_on_seed_and_index_alone():
    again = draw_scene(3, 7, size=96)
    assert (again.image == SCENES[7].image).all() and (again.masks == SCENES[7].masks).all()
    assert not (draw_scene(4, 7, size=96).image == again.image).all()
    assert not (draw_scene(3, 7 + FIRST_VAL_INDEX, size=96).image == again.image).all()


def test_the_label_is_the_kind_of_the_largest_object(monkeypatch):
    kinds, draw = [], drawn_scenes._draw_object

    def draw_and_note(*arguments):
        thing = draw(*arguments)
        kinds.append((thing.kind, thing.window, thing.outline))
        return thing

    monkeypatch.setattr(drawn_scenes, "_draw_object", draw_and_note)
    for index in range(20):
        kinds.clear()
        scene = draw_scene(3, index, size=96)
        largest = scene.masks[scene.masks.sum((1, 2)).argmax()]
        hidden = [(largest[window] & (outline >= 0)).sum() for _, window, outline in kinds]
        covered = [(largest[window] & (outline < 0)).sum() for _, window, outline in kinds]
        things = zip(kinds, hidden, covered, strict=True)
        owners = {kind for (kind, *_), out, area in things if out == 0 and area == largest.sum()}
        assert scene.label in owners


def test_classes_occur_and_mean_colour_does_not_tell_them():
    scenes = [draw_scene(0, index, size=64) for index in range(500)]
    labels = np.array([scene.label for scene in scenes])
    assert np.bincount(labels, minlength=len(CLASSES)).min() > 15
    largest = [scene.masks[scene.masks.sum((1, 2)).argmax()] for scene in scenes]
    colours = np.stack([scene.image[mask].mean(0) for scene, mask in zip(scenes, largest, strict=True)])
    distance = ((colours[:, None] - colours) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(1)] == labels).mean() < 2 / len(CLASSES)


def test_webdataset_reads_images_labels_and_the_masks_in_sa1b_schema(tmp_path):
    write_small(tmp_path, seed=9)
    samples = read(tmp_path, "train")
    assert len(samples) == 2
    for index, stored in enumerate(samples):
        scene = draw_scene(9, index, size=64)
        image = np.asarray(Image.open(io.BytesIO(stored["jpg"])))
        assert abs(image.astype(int) - scene.image).mean() < 12  # JPEG
        assert int(stored["cls"]) == scene.label
        record = json.loads(stored["json"])
        name = f"{stored['__key__']}.jpg"
        assert record["image"] == {"image_id": index, "width": 64, "height": 64, "file_name": name}
        assert len(record["annotations"]) == len(scene.masks)
        for annotation, mask in zip(record["annotations"], scene.masks, strict=True):
            assert (coco_mask.decode(annotation["segmentation"]) == mask).all()
            y, x = np.nonzero(mask)
            assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert annotation["area"] == mask.sum() and annotation["crop_box"] == [0, 0, 64, 64]
            ((px, py),) = annotation["point_coords"]
            assert mask[int(py), int(px)]


def test_splits_share_no_scene_and_ids_are_unique(tmp_path):
    write_small(tmp_path, shard_size=5)
    samples = read(tmp_path, "train") + read(tmp_path, "val")
    records = [json.loads(stored["json"]) for stored in samples]
    assert len({record["image"]["image_id"] for record in records}) == len({s["__key__"] for s in samples}) == 8
    ids = [annotation["id"] for record in records for annotation in record["annotations"]]
    assert len(set(ids)) == len(ids)
    assert len({stored["jpg"] for stored in samples}) == 8


def test_same_seed_same_bytes_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    write_small(tmp_path / "whole")
    whole = tars(tmp_path / "whole")
    assert list(whole) == [f"train-{i:06d}.tar" for i in range(3)] + [f"val-{i:06d}.tar" for i in range(2)]

    def fail_at_three(seed, index, *, size):
        if index == 3:
            raise KeyboardInterrupt
        return draw_scene(seed, index, size=size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(drawn_shards, "draw_scene", fail_at_three)
        write_small(tmp_path / "cut")
    assert list(tars(tmp_path / "cut")) == ["train-000000.tar"]
    (tmp_path / "cut" / ".train-000001.tar.0.tmp").write_bytes(b"left by kill -9")
    before = (tmp_path / "cut" / "train-000000.tar").stat().st_mtime_ns
    write_small(tmp_path / "cut")
    assert tars(tmp_path / "cut") == whole
    assert (tmp_path / "cut" / "train-000000.tar").stat().st_mtime_ns == before
    assert not list((tmp_path / "cut").glob(".*"))


def test_other_arguments_in_the_same_folder_are_refused(tmp_path):
    write_small(tmp_path)
    with pytest.raises(ValueError, match=r"seed=0 \(now 1\)"):
        write_small(tmp_path, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train-000000.tar").touch()
    with pytest.raises(ValueError, match="not this command's"):
        write_small(tmp_path / "other")


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"size": 32}, {"shard_size": 0}, {"num_train": -1}])
def test_bad_numbers_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        write_small(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_commands_share_a_folder_and_validate_on_its_first_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_shards, "VAL_SCENES", 4)
    monkeypatch.setattr(drawn_shards, "VAL_SHARD", 2)
    train, val = drawn_shards.draw_shards(str(tmp_path), num_train=3, num_val=4)
    before = tars(tmp_path)
    assert (len(train), len(val)) == (1, 2)
    assert drawn_shards.draw_shards(str(tmp_path), num_train=3, num_val=1) == (train, val[:1])
    assert tars(tmp_path) == before
