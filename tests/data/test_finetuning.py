import json

import numpy as np
import pytest
import torch
from conftest import encode
from masked_images import draw_masks, rle, sa1b_record, write_coco, write_sa1b_folder

from sami.data.datasets import EvalSet, Index, Row, TrainSet
from sami.data.decode import BrokenImage
from sami.data.finetuning import ExactObjects, FinetuningData, SomeMasks, draw_window, pad_objects
from sami.data.sampling import NO_ROW, NUM_NOISE, ShuffledOrder, Stream
from sami.data.sources.base import AnnotatedImage, MaskSource
from sami.data.sources.masks import Sa1bFolder, open_mask_source
from sami.data.square import FrameSpec
from sami.ops.boxes import mask_to_box
from sami.ops.rle import mask_to_rle

OPTIONS = {
    **{"image_size": 64, "mask_size": None, "resize_mode": "pad", "num_masks": 4, "num_val_masks": 2, "max_area": 0.9},
    **{"flip": 0.5, "scale": (1.0, 1.0), "seed": 0, "num_workers": 0, "shuffle_window": 1, "val_batch_size": 2},
}


def train_set(source: MaskSource, *, seed: int = 0, num_masks: int = 3, flip: float = 0.5, **spec) -> TrainSet:
    order = ShuffledOrder(source.counts, seed=seed, window=2, epoch_size=8)
    own = FrameSpec(**{"image_size": 32, "mask_size": 16, "resize_mode": "stretch", "max_area": 0.9, **spec})
    some = SomeMasks(own, num_masks, flip)
    return TrainSet(source, order, some, seed=seed, stream=Stream.FINETUNING, join=pad_objects)


def val_set(source: MaskSource, spec: FrameSpec) -> EvalSet:
    blank = {**spec.blank(), "objects": None}
    return EvalSet(source, ExactObjects(spec, 2), blank, seed=0, stream=Stream.FINETUNING_VAL)


def row_of(
    image: AnnotatedImage, spec: FrameSpec, seed: int = 0, *, num_masks: int = 1, flip: float = 0.0, scale=(1.0, 1.0)
) -> Row:
    return SomeMasks(spec, num_masks, flip, scale)(image, np.random.default_rng(seed), Index(0, 0, 0))


def test_batch_shapes(tmp_path) -> None:
    images = train_set(Sa1bFolder(str(write_sa1b_folder(tmp_path, 8))))
    batch = images.__getitems__(list(range(8)))
    assert batch["image"].shape == (8, 3, 32, 32) and batch["image"].dtype == torch.uint8
    assert batch["masks"].shape == (8, 3, 16, 16) and batch["masks"].dtype == torch.bool
    assert batch["noise"].shape == (8, 3, NUM_NOISE) and batch["input_size"].tolist() == [[32, 32]] * 8
    assert sorted(batch["object_valid"].sum(1).tolist()) == [1, 1, 2, 2, 3, 3, 3, 3]  # of 1, 2, 3, 4 masks each
    assert torch.equal(batch["masks"].flatten(2).any(-1), batch["object_valid"])
    assert batch["boxes"].shape == (8, 3, 4) and torch.equal(batch["boxes"].any(-1), batch["object_valid"])
    assert batch["broken"] == [] and batch["position"].tolist() == list(range(8))


def test_a_view_depends_on_seed_and_position_alone(tmp_path) -> None:
    source = Sa1bFolder(str(write_sa1b_folder(tmp_path, 8)))
    together = train_set(source).__getitems__(list(range(24)))
    for position in (11, 2, 23):
        alone = train_set(source).__getitems__([position])
        count = int(alone["object_valid"].sum())
        for name in ("image", "masks", "boxes", "noise"):
            whole = together[name][position] if name == "image" else together[name][position, :count]
            assert torch.equal(alone[name][0], whole), name
        assert int(together["object_valid"][position].sum()) == count
    first, second = (train_set(source).__getitems__(list(range(8 * e, 8 * e + 8))) for e in (0, 1))
    assert not torch.equal(first["noise"].sum(), second["noise"].sum())
    other = train_set(source, seed=1).__getitems__([2])
    assert not torch.equal(other["noise"][0, 0], together["noise"][2, 0])


def painted(height: int, width: int, seed: int) -> tuple[AnnotatedImage, np.ndarray]:
    """An image that is white in its masks and black elsewhere, as PNG: the image shows where the masks belong."""
    masks = draw_masks(seed, 2, height=height, width=width)
    image = np.repeat(255 * masks[0].astype(np.uint8)[..., None], 3, axis=2)
    return AnnotatedImage(encode(image, "PNG"), [rle(masks[0])]), masks[0]


@pytest.mark.parametrize("resize_mode", ["stretch", "pad"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("size", [(48, 64), (90, 33), (200, 140)])
@pytest.mark.parametrize("mask_side", [64, 16])
def test_masks_lie_where_the_image_shows_them(resize_mode, flip, size, mask_side) -> None:
    """To a fraction of a pixel: the white of the resized image and the mask have the same area and centre."""
    image, _ = painted(*size, seed=size[0])
    spec = FrameSpec(64, mask_side, resize_mode, 0.9)
    view = row_of(image, spec, flip=flip)
    mask, white = view["masks"][0], view["image"][0].float() / 255
    cell = 64 // mask_side
    mask = mask.float().repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    assert mask.sum() == pytest.approx(float(white.sum()), rel=0.03 if cell == 1 else 0.15)
    place = torch.arange(64) + 0.5
    for axis in (0, 1):
        centres = [float((picture.sum(axis) * place).sum() / picture.sum()) for picture in (mask, white)]
        assert centres[0] == pytest.approx(centres[1], abs=0.12 if cell == 1 else 1.0)
    height, width = view["input_size"].tolist()
    assert (height, width) == ((64, 64) if resize_mode == "stretch" else spec.of(size).input_size)
    assert not view["image"][:, height:].any() and not view["image"][:, :, width:].any()


@pytest.mark.parametrize("resize_mode", ["stretch", "pad"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("mask_side", [64, 16])
def test_masks_lie_where_a_window_shows_them(resize_mode, flip, mask_side) -> None:
    """Random windows of random images; also where a cell is cut by the window's edge."""
    spec, cell = FrameSpec(64, mask_side, resize_mode, 0.9), 64 // mask_side
    seen = set()
    for seed in range(12):
        image, _ = painted(90, 130, seed=seed)
        view = row_of(image, spec, seed, flip=flip, scale=(0.2, 1.0))
        mask, white = view["masks"][0], view["image"][0].float() / 255
        mask = mask.float().repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        assert (mask - white).abs().mean() < 0.02 * cell**0.5
        edges = mask_to_box(white >= 0.5) / cell  # of all its pixels, where cells have lost some
        assert (view["boxes"][0] - edges).abs().max() <= 0.75 / cell + 1e-4
        height, width = view["input_size"].tolist()
        assert not view["image"][:, height:].any() and not view["image"][:, :, width:].any()
        seen.add(round(float(white.mean()), 3))
    assert len(seen) == 12


def test_a_window_has_the_images_shape_and_the_area_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    windows = np.array([draw_window((300, 400), rng, scale=(0.25, 1.0)) for _ in range(2000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height).max() <= 300 and (left + width).max() <= 400
    assert (abs(height / width - 0.75) < 0.01).all()
    areas = height * width / 120_000
    assert 0.249 < areas.min() < 0.26 and 0.99 < areas.max() <= 1
    assert abs((areas < 0.5).mean() - 0.5) < 0.03  # as many magnified once to twice as twice to four times
    assert left.min() == 0 and (left + width).max() == 400


def test_a_box_is_that_of_the_masks_pixels_not_of_its_cells() -> None:
    """A cross of one pixel's width in cells of four: the cells keep less than half of it, and the box all."""
    masks = np.zeros((64, 64), dtype=bool)
    masks[10, 3:30], masks[5:21, 8:15] = True, True
    image = AnnotatedImage(encode(np.zeros((64, 64, 3), dtype=np.uint8)), [rle(masks)])
    spec = FrameSpec(64, 16, "pad", 0.9)
    for flip, box in ((0, [3, 5, 30, 21]), (1, [34, 5, 61, 21])):
        view = row_of(image, spec, flip=flip)
        assert (4 * view["boxes"][0]).tolist() == box
        x0, _, x1, _ = mask_to_box(view["masks"][0]).tolist()
        assert x1 - x0 == 2


def test_an_image_without_masks_is_broken() -> None:
    image = AnnotatedImage(encode(np.zeros((9, 9, 3), dtype=np.uint8)), [])
    for scale in ((1.0, 1.0), (0.3, 1.0)):
        with pytest.raises(BrokenImage, match="none of its 0 masks can be used"):
            row_of(image, FrameSpec(64, 16, "pad", 0.9), scale=scale)


def test_a_window_without_masks_gives_way_to_the_image() -> None:
    masks = np.zeros((64, 64), dtype=bool)
    masks[:2, :2] = True
    image = AnnotatedImage(encode(np.zeros((64, 64, 3), dtype=np.uint8)), [rle(masks)])
    spec = FrameSpec(64, 64, "stretch", 0.9)
    views = [row_of(image, spec, s, scale=(0.1, 1.0)) for s in range(20)]
    whole = [torch.equal(view["masks"][0], torch.from_numpy(masks)) for view in views]
    assert sum(whole) > 10


def test_masks_of_another_scale_are_whole_at_the_images_own_size() -> None:
    image, mask = painted(64, 64, seed=3)
    view = row_of(image, FrameSpec(64, 64, "stretch", 0.9))
    assert np.array_equal(view["masks"][0].numpy(), mask)


def test_large_and_empty_masks_are_dropped_and_tiny_ones_are_not() -> None:
    """At every size of the grid the same masks are used."""
    masks = np.zeros((5, 64, 64), dtype=bool)
    masks[0, :58] = True  # 91 %
    masks[1, :57] = True  # 89 %
    masks[2, 5, 5] = True
    masks[4, 20:30, 20:30] = True
    image = AnnotatedImage(encode(np.zeros((64, 64, 3), dtype=np.uint8)), [rle(mask) for mask in masks])
    for side in (64, 16, 4):
        spec = FrameSpec(64, side, "stretch", 0.9)
        view = row_of(image, spec, num_masks=9)
        areas = sorted(int(mask.sum()) for mask in view["masks"])
        assert len(areas) == 3 and areas[0] == 1
        cell = 64 // side  # pixels; a cell that is half covered counts, so an edge is off by half a cell at most
        for area, exact, border in zip(areas[1:], (100, 57 * 64), (4 * 10, 64), strict=True):
            assert abs(area * cell**2 - exact) <= cell // 2 * border
    for wrong, count in ((masks[:1], 1), (masks[:0], 0), (masks[3:4], 1)):
        none = image._replace(segmentations=[rle(mask) for mask in wrong])
        with pytest.raises(BrokenImage, match=f"none of its {count} masks can be used"):
            row_of(none, spec, num_masks=9)


def test_masks_that_are_not_drawn_are_not_decoded(tmp_path) -> None:
    image, _ = painted(48, 64, seed=0)
    image = image._replace(segmentations=image.segmentations * 9 + ["nonsense"])
    spec = FrameSpec(32, 32, "stretch", 0.9)
    drawn = []
    for seed in range(40):
        try:
            drawn.append(len(row_of(image, spec, seed, num_masks=3)["masks"]))
        except BrokenImage as error:
            assert "a mask cannot be read" in str(error)
    assert set(drawn) == {3} and 20 <= len(drawn) < 40


def test_broken_images_are_replaced_and_reported(tmp_path) -> None:
    root = write_sa1b_folder(tmp_path, 8)
    (root / "sa_1.json").write_bytes(b"{")
    (root / "sa_2.json").write_bytes(sa1b_record(2, draw_masks(2, 3, height=40)))  # masks of another size
    (root / "sa_3.json").write_text(json.dumps({"annotations": []}))
    (root / "sa_5.jpg").write_bytes(b"no image")
    source = Sa1bFolder(str(root))
    batch = train_set(source).__getitems__(list(range(8)))
    reasons = dict(batch["broken"])
    assert {name.split("_")[-1] for name in reasons} == {"1.jpg", "2.jpg", "3.jpg", "5.jpg"}
    assert "a mask of 40x64 in an image of 48x64" in reasons[str(root / "sa_2.jpg")]
    assert batch["object_valid"].any(1).all() and (batch["image"].float().std(dim=(1, 2, 3)) > 1).all()
    for path in root.glob("*.json"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"51 images in a row cannot be used, the last is .*sa_"):
        train_set(source).__getitems__([0])


def test_coco_polygons_become_masks(tmp_path) -> None:
    source = open_mask_source(str(write_coco(tmp_path, 9)))
    batch = train_set(source, num_masks=4, flip=0, image_size=64, mask_size=64, resize_mode="pad").__getitems__([0, 1])
    assert batch["object_valid"].sum(1).tolist() == [3, 3]
    sizes = {int(mask_to_rle(mask)[1::2].sum()) for mask in batch["masks"][0]}
    assert len(sizes) == 3 and min(sizes) > 50


def test_validation_batches(tmp_path) -> None:
    root = write_sa1b_folder(tmp_path, 5)
    (root / "sa_2.jpg").write_bytes(b"")
    images = val_set(Sa1bFolder(str(root)), FrameSpec(32, 8, "pad", 0.9))
    batch = images.__getitems__([0, 3, 2, NO_ROW])
    assert batch["image"].shape == (4, 3, 32, 32) and not batch["image"][2:].any()
    assert batch["image_valid"].tolist() == [True, True, False, False]
    assert [objects and len(objects) for objects in batch["objects"]] == [1, 2, None, None]
    assert [where.split("_")[-1] for where, _ in batch["broken"]] == ["2.jpg"]
    assert batch["input_size"].tolist() == [[24, 32], [24, 32], [1, 1], [1, 1]]
    again, first = images.__getitems__([3])["objects"][0], batch["objects"][1]
    for one, other in zip(again.take(slice(9), again.frame), first.take(slice(9), first.frame), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("write", [write_sa1b_folder, write_coco])
def test_which_masks_and_what_they_are_does_not_depend_on_the_models_frame(tmp_path, write) -> None:
    source = open_mask_source(str(write(tmp_path / "images", 6)))
    specs = [FrameSpec(16, 4, "pad", 0.9), FrameSpec(128, 32, "stretch", 0.5)]
    small, large = (val_set(source, spec) for spec in specs)
    for rows in ([0, 1], [4]):
        for ours, theirs in zip(*(images.__getitems__(rows)["objects"] for images in (small, large)), strict=True):
            masks, noise = ours.take(slice(9), ours.frame)
            others, other_noise = theirs.take(slice(9), theirs.frame)
            assert masks.shape[2:] == (48, 64) and torch.equal(masks, others) and torch.equal(noise, other_noise)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize_mode": "crop"}, "choose stretch or pad"),
        ({"num_masks": 0}, "num_masks=0"),
        ({"max_area": 0}, "max_area=0"),
        ({"scale": (0.5, 1.1)}, r"scale=\[0.5, 1.1\]"),
        ({"scale": (0.0, 1.0)}, r"scale=\[0.0, 1.0\]"),
        ({"val_batch_size": 0}, "val_batch_size=0"),
    ],
)
def test_mistakes(tmp_path, wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuningData(str(write_sa1b_folder(tmp_path, 1)), None, **{**OPTIONS, **wrong})
