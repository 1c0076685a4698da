import numpy as np
import torch

from sami.callbacks.pictures import GREY, TITLE_HEIGHT, draw_sheet, pca_colors


def test_equal_features_have_equal_colours() -> None:
    target = torch.randn(2, 16, 8) @ torch.randn(8, 8)
    same, copy = pca_colors(target, target.clone())
    assert same.shape == (2, 16, 3) and same.dtype == torch.uint8 and torch.equal(same, copy)


def test_one_basis_for_both() -> None:
    """A student that says the mean everywhere has one colour; with a basis of its own it would look as rich."""
    target = torch.randn(2, 16, 8)
    _, student = pca_colors(target, target.mean(dim=(0, 1)).expand_as(target))
    assert (student == student[0, 0]).all()


def test_first_component_is_red() -> None:
    target = torch.zeros(1, 4, 5)
    target[0, :, 3] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    colours, _ = pca_colors(target, target)
    red = colours[0, :, 0].int()
    assert (red.diff() > 50).all()


def test_sheet_places() -> None:
    """Token 1 of a 2x2 grid is the upper right quarter, in every column."""
    image = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    tokens = torch.zeros(1, 4, 3, dtype=torch.uint8)
    tokens[0, 1] = 255
    sheet = np.asarray(draw_sheet(image, torch.tensor([[1]]), tokens, tokens, grid_size=(2, 2)))[TITLE_HEIGHT:]
    assert sheet.shape == (8, 32, 3)
    _, visible, teacher, student = np.split(sheet, 4, axis=1)
    assert (visible[:4, 4:] == 200).all() and (visible[4:] == GREY).all() and (visible[:, :4] == GREY).all()
    for column in (teacher, student):
        assert (column[:4, 4:] == 255).all() and (column[4:] == 0).all()
