import numpy as np
import pytest
import torch
from conftest import encode
from masked_photos import draw_masks, draw_scene, rle, write_coco, write_sa1b_folder

from sami.data.images import BrokenImage
from sami.data.mask_sources import MaskedPhoto, Sa1bFolder, open_mask_source
from sami.data.mask_views import MaskFrame
from sami.data.photo_objects import EvalMaskViews, draw_objects
from sami.data.views import PADDING


def test_batches(tmp_path) -> None:
    root = write_sa1b_folder(tmp_path, 5)
    (root / "sa_2.jpg").write_bytes(b"")
    views = EvalMaskViews(Sa1bFolder(str(root)), seed=0, frame=MaskFrame(32, 8, "pad", 0.9), num_masks=2)
    batch = views.__getitems__([0, 3, 2, PADDING])
    assert batch["image"].shape == (4, 3, 32, 32) and not batch["image"][2:].any()
    assert [objects and len(objects) for objects in batch["objects"]] == [1, 2, None, None]
    assert [where.split("_")[-1] for where, _ in batch["broken"]] == ["2.jpg"]
    assert batch["input_size"].tolist() == [[24, 32], [24, 32], [1, 1], [1, 1]]
    again, first = views.__getitems__([3])["objects"][0], batch["objects"][1]
    for one, other in zip(again.take(slice(9), again.frame), first.take(slice(9), first.frame), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("write", [write_sa1b_folder, write_coco])
def test_which_masks_and_what_they_are_does_not_depend_on_the_models_frame(tmp_path, write) -> None:
    source = open_mask_source(str(write(tmp_path / "photos", 6)))
    frames = [MaskFrame(16, 4, "pad", 0.9), MaskFrame(128, 32, "stretch", 0.5)]
    small, large = (EvalMaskViews(source, seed=0, frame=frame, num_masks=2) for frame in frames)
    for rows in ([0, 1], [4]):
        for ours, theirs in zip(*(views.__getitems__(rows)["objects"] for views in (small, large)), strict=True):
            masks, noise = ours.take(slice(9), ours.frame)
            others, other_noise = theirs.take(slice(9), theirs.frame)
            assert masks.shape[2:] == (48, 64) and torch.equal(masks, others) and torch.equal(noise, other_noise)


def test_masks_are_exact_in_the_photos_own_pixels_and_whole_on_a_smaller_grid() -> None:
    drawn = draw_masks(0, 4, height=90, width=120)
    drawn[3] = False
    drawn[3, 50, 70] = True
    photo = MaskedPhoto(encode(draw_scene(0, drawn)), [rle(mask) for mask in drawn])
    objects = draw_objects(photo, MaskFrame(16, 4, "pad", 0.01), np.random.default_rng(0), num_masks=9)
    masks, noise = objects.take(slice(9), objects.frame)
    assert masks.shape == (1, 4, 90, 120) and noise.shape[:2] == (1, 4)
    assert {mask.numpy().tobytes() for mask in masks[0]} == {mask.tobytes() for mask in drawn}
    shrunk, _ = objects.take(slice(9), objects.frame.shrunk(40))
    assert shrunk.shape == (1, 4, 30, 40)
    areas = [one.flatten(2).sum(-1)[0] for one in (masks, shrunk)]
    assert sorted(areas[1].tolist())[0] == 1  # the single pixel
    large = areas[0] > 1
    torch.testing.assert_close(areas[0][large] / 9, areas[1][large].float(), rtol=0.1, atol=3)
    some, some_noise = objects.take(slice(1, 3), objects.frame)
    assert torch.equal(some[0], masks[0, 1:3]) and torch.equal(some_noise[0], noise[0, 1:3])


def test_masks_larger_than_training_takes_are_asked_for_and_empty_ones_are_not() -> None:
    drawn = np.zeros((3, 20, 30), dtype=bool)
    drawn[0], drawn[1, 3, 4] = True, True
    photo = MaskedPhoto(encode(draw_scene(0, drawn)), [rle(mask) for mask in drawn])
    frame = MaskFrame(16, 4, "stretch", 0.9)
    assert len(draw_objects(photo, frame, np.random.default_rng(0), num_masks=9)) == 2
    with pytest.raises(BrokenImage, match="none of its 1 masks can be used"):
        draw_objects(photo._replace(segmentations=[rle(drawn[2])]), frame, np.random.default_rng(0), num_masks=9)
