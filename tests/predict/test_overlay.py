import numpy as np

from sami.predict.overlay import COLORS, INSIDE, OUTSIDE, draw_masks, outline


def test_what_is_drawn_and_where():
    image = np.full((60, 80, 3), 100, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:20, 10:30] = masks[1, 40:50, 50:70] = True
    before = image.copy()
    picture = np.asarray(
        draw_masks(image, masks, point_coords=[[20, 15], [70, 5]], point_labels=[1, 0], boxes=[(5, 5, 35, 25)])
    )
    assert picture.shape == (60, 80, 3) and (image == before).all()
    for number, (y, x) in enumerate([(12, 12), (45, 60)]):
        assert np.abs(picture[y, x] - (50 + np.array(COLORS[number]) / 2)).max() <= 1
    assert (picture[10, 28] == COLORS[0]).all() and (picture[49, 60] == COLORS[1]).all()  # outlines
    assert (picture[5, 20] == COLORS[0]).all()  # the box
    assert (picture[15, 20] == INSIDE).all() and (picture[5, 70] == OUTSIDE).all()
    assert (picture[55, 5] == 100).all()


def test_outline():
    mask = np.zeros((6, 7), bool)
    mask[0:4, 1:6] = True
    edge = outline(mask)
    assert (edge & mask == edge).all()
    assert not edge[1:3, 2:5].any() and edge.sum() == 20 - 6
