import numpy as np
import pytest
import torch

from sami.ops.frames import longest_side_frame
from sami.predict.check_prompts import Prompt, read_prompt, stack_prompts

FRAME = longest_side_frame((60, 80), 160)  # twice as large


def read(**given):
    names = ("point_coords", "point_labels", "box", "mask_input")
    return read_prompt(FRAME, *(given.get(name) for name in names), takes_background=True)


def test_points_then_the_corners_of_the_box():
    prompt = read(point_coords=[[1, 2], [3.5, 4]], point_labels=[1, 0], box=[5, 6, 70, 80.5])
    assert prompt.coords.tolist() == [[2, 4], [7, 8], [10, 12], [140, 161]]
    assert prompt.labels.tolist() == [1, 0, 2, 3] and prompt.mask is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no prompt"),
        ({"point_labels": [1]}, "point_labels come without point_coords"),
        ({"point_coords": [[1, 1]]}, "point_coords come without point_labels"),
        (
            {"point_coords": [[81, 1]], "point_labels": [1]},
            r"point \(81, 1\) is outside the image, which is 80 wide and 60",
        ),
        ({"point_coords": [[1, -0.5]], "point_labels": [1]}, r"point \(1, -0.5\) is outside"),
        ({"point_coords": [[1, 61]], "point_labels": [1]}, "outside"),
        ({"point_coords": [1, 1], "point_labels": [1]}, r"point_coords is \[2\]"),
        ({"point_coords": np.zeros((0, 2)), "point_labels": []}, r"point_coords is \[0, 2\]"),
        ({"point_coords": [[1, float("nan")]], "point_labels": [1]}, "not finite"),
        ({"point_coords": [["a", "b"]], "point_labels": [1]}, "not an array of numbers"),
        ({"point_coords": [[1, 1]], "point_labels": [1, 1]}, r"point_labels is \[2\] for 1 points"),
        ({"point_coords": [[1, 1]], "point_labels": [2]}, "point label 2: give 1 for foreground, 0 for background, -1"),
        ({"point_coords": [[1, 1]], "point_labels": [0.5]}, "point label 0.5"),
        ({"box": [5, 5, 5, 10]}, r"box \(5, 5, 5, 10\) has no area"),
        ({"box": [5, 10, 15, 8]}, "has no area"),
        ({"box": [80, 5, 90, 10]}, "is outside the image"),
        ({"box": [5, -9, 10, 0]}, "is outside the image"),
        ({"box": [5, 5, 10]}, r"box is \[3\]"),
        ({"box": [[5, 5, 10, 10]] * 2}, "several go to predict_batch"),
        ({"mask_input": np.zeros(5)}, r"mask_input is \[5\]"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read(**given)


def test_what_is_not():
    read(point_coords=[[80, 60]], point_labels=[1])  # the far corner
    read(point_coords=[[1, 1], [-1, -1]], point_labels=[1, -1])  # padding is nowhere
    read(box=[[-3, -3, 90, 70]])  # wider than the image
    read(point_coords=torch.tensor([[1, 1]]), point_labels=torch.tensor([True]))
    assert read(mask_input=np.zeros((1, 8, 8))).mask.shape == (8, 8)


def test_stacked_prompts_are_filled_with_padding():
    short = Prompt(torch.tensor([[1.0, 2]]), torch.tensor([1]), None)
    long = Prompt(torch.tensor([[3.0, 4], [5, 6]]), torch.tensor([2, 3]), None)
    coords, labels, masks = stack_prompts([[short, long]], torch.device("cpu"))
    assert labels.tolist() == [[[1, -1], [2, 3]]] and masks is None
    assert coords[0, 1].tolist() == [[3, 4], [5, 6]]
    with pytest.raises(ValueError, match="different sizes"):
        stack_prompts(
            [[short._replace(mask=torch.zeros(4, 4)), short._replace(mask=torch.zeros(8, 8))]], torch.device("cpu")
        )
