import numpy as np
import torch

from sami.data.crops import normalize
from sami.methods.mask_pictures import COLORS, TITLE_HEIGHT, draw_sheet, paint, photo_of
from sami.ops.frames import longest_side_frame, squash_frame


def test_the_photo_comes_out_of_the_square_as_it_was() -> None:
    photo = torch.randint(0, 256, (1, 3, 6, 8)).repeat_interleave(8, 2).repeat_interleave(8, 3).byte()  # [1, 3, 48, 64]
    for fit in (longest_side_frame, squash_frame):
        frame = fit((48, 64), 128)
        seen = normalize(frame.pad(frame.resize(photo).round().byte()))
        back = photo_of(seen, frame)
        assert back.shape == (3, 48, 64) and back.dtype == torch.uint8
        assert (back.int() - photo[0].int()).abs().float().mean() < 12


def test_masks_are_tinted_and_outlined() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 2:12, 2:12], masks[1, 10:18, 20:28] = True, True
    painted = paint(torch.zeros(3, 20, 30, dtype=torch.uint8), masks)
    assert torch.equal(painted[:, 6, 7], (0.4 * COLORS[0]).round().byte())  # inside
    assert torch.equal(painted[:, 2, 7], COLORS[0].byte()) and torch.equal(painted[:, 3, 7], COLORS[0].byte())
    assert torch.equal(painted[:, 11, 25], COLORS[1].byte()) and not painted[:, ~masks.any(0)].any()


def test_photos_of_different_sizes_on_one_sheet() -> None:
    rows = [[torch.full((3, h, w), 9 * n, dtype=torch.uint8) for n in (1, 2, 3)] for h, w in ((10, 20), (20, 12))]
    sheet = np.asarray(draw_sheet(rows, ("a", "b", "c")))
    assert sheet.shape == (30 + TITLE_HEIGHT, 60, 3)
    assert (sheet[TITLE_HEIGHT : TITLE_HEIGHT + 10, 20:40] == 18).all()
    assert (sheet[TITLE_HEIGHT + 10 :, 40:52] == 27).all() and (sheet[TITLE_HEIGHT + 10 :, 52:] == 255).all()
