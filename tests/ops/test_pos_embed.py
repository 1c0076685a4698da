"""The fixed position table."""

import math

import pytest
import torch

from sami.ops.pos_embed import sincos_pos_embed


def test_shape_and_prefix():
    table = sincos_pos_embed((3, 5), 16, num_prefix_tokens=2)
    assert table.shape == (1, 17, 16)
    assert table.dtype == torch.float32
    assert (table[:, :2] == 0).all()
    assert torch.equal(table[:, 2:], sincos_pos_embed((3, 5), 16))


def test_every_number():
    gh, gw, width = 3, 5, 16
    table = sincos_pos_embed((gh, gw), width)[0]
    for y in range(gh):
        for x in range(gw):
            row = []
            for position in (x, y):
                angles = [position / 10000 ** (i / (width // 4)) for i in range(width // 4)]
                row += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            torch.testing.assert_close(table[y * gw + x], torch.tensor(row))


def test_no_two_places_are_alike():
    table = sincos_pos_embed((14, 14), 64)[0]
    assert (torch.cdist(table, table) + torch.eye(196)).min() > 0.5


def test_width_must_divide_by_four():
    with pytest.raises(ValueError, match=r"width=6: a 2-D sin-cos table needs a multiple of 4"):
        sincos_pos_embed((2, 2), 6)
