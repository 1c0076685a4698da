import pytest
import torch

from sami.ops.masks import innermost_pixel, mask_iou, squared_depth


def some_masks() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 4, 19, 23, generator=rng)
    masks = noise < torch.tensor([0.3, 0.8, 0.97, 0.995]).view(4, 1, 1)
    masks[0, 0], masks[1, 0] = False, True
    return masks


def test_depth_is_the_distance_to_the_nearest_pixel_outside() -> None:
    masks = some_masks()
    depth = squared_depth(masks)
    outside = torch.nn.functional.pad(~masks, (1, 1, 1, 1), value=True)
    for image in range(2):
        for number in range(4):
            places = outside[image, number].nonzero() - 1
            for y in range(19):
                for x in range(23):
                    nearest = (places - torch.tensor([y, x])).square().sum(-1).min()
                    expected = nearest if masks[image, number, y, x] else 0
                    assert depth[image, number, y, x] == expected


def test_innermost_pixel() -> None:
    masks = torch.zeros(3, 9, 30, dtype=torch.bool)
    masks[0, 1:8, 3:10] = True  # 7 x 7: its centre is four pixels from the outside
    masks[1, :, :] = True  # the image's edge counts as one of the mask
    pixels, distance = innermost_pixel(masks)
    assert pixels[0].tolist() == [6, 4] and distance.tolist() == [4, 5, 0]
    assert pixels[1, 1] == 4 and pixels[2].tolist() == [0, 0]


def test_only_the_box_of_a_mask_is_looked_at_and_nothing_is_missed() -> None:
    masks = torch.zeros(5, 40, 60, dtype=torch.bool)
    masks[0, 3:30, 20:58] = True
    masks[1, 10:, 0:12], masks[1, 12:15, 50:60] = True, True  # at the image's edge, in two pieces
    masks[2] = torch.rand(40, 60, generator=torch.Generator().manual_seed(0)) < 0.9
    masks[3, 39, 59] = True
    pixels, distance = innermost_pixel(masks.view(1, 5, 40, 60))
    assert pixels.shape == (1, 5, 2) and distance.shape == (1, 5)
    deepest, index = squared_depth(masks).flatten(1).max(dim=1)
    assert torch.equal(distance[0], deepest.sqrt()) and pixels[0, 3].tolist() == [59, 39]
    assert torch.equal(pixels[0], torch.stack([index % 60, index // 60], dim=-1).float())


def test_iou() -> None:
    a, b = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    a[0, :2], b[0, 1:3] = True, True
    a[1, 0] = True
    assert mask_iou(a, b).tolist() == pytest.approx([1 / 3, 0, 1])
