import numpy as np
import pytest
import torch
from conftest import encode
from masked_images import draw_masks, draw_scene, rle

from sami.data.decode import BrokenImage
from sami.data.objects import draw_objects
from sami.data.sources.base import AnnotatedImage
from sami.data.square import FrameSpec


def test_masks_are_exact_in_the_images_own_pixels_and_whole_on_a_smaller_grid() -> None:
    drawn = draw_masks(0, 4, height=90, width=120)
    drawn[3] = False
    drawn[3, 50, 70] = True
    image = AnnotatedImage(encode(draw_scene(0, drawn)), [rle(mask) for mask in drawn])
    objects = draw_objects(image, FrameSpec(16, 4, "pad", 0.01), np.random.default_rng(0), num_masks=9)
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
    image = AnnotatedImage(encode(draw_scene(0, drawn)), [rle(mask) for mask in drawn])
    spec = FrameSpec(16, 4, "stretch", 0.9)
    assert len(draw_objects(image, spec, np.random.default_rng(0), num_masks=9)) == 2
    with pytest.raises(BrokenImage, match="none of its 1 masks can be used"):
        draw_objects(image._replace(segmentations=[rle(drawn[2])]), spec, np.random.default_rng(0), num_masks=9)
