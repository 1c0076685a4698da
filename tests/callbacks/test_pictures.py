import numpy as np
import torch

from sami.callbacks.pictures import TITLE_HEIGHT, draw_sheet
from sami.predict.overlay import draw_masks


def test_images_of_different_sizes_on_one_sheet() -> None:
    sizes = ((10, 20), (20, 12))
    columns = {t: [torch.full((3, *size), 9 * n, dtype=torch.uint8) for size in sizes] for n, t in enumerate("abc", 1)}
    sheet = np.asarray(draw_sheet(columns))
    assert sheet.shape == (30 + TITLE_HEIGHT, 60, 3)
    assert (sheet[TITLE_HEIGHT : TITLE_HEIGHT + 10, 20:40] == 18).all()
    assert (sheet[TITLE_HEIGHT + 10 :, 40:52] == 27).all() and (sheet[TITLE_HEIGHT + 10 :, 52:] == 255).all()


def test_masks_are_painted_as_in_predictions() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 2:12, 2:12], masks[1, 10:18, 20:28] = True, True
    sheet = np.asarray(draw_sheet({"masks": [(image, masks)]}))
    painted = np.asarray(draw_masks(image.permute(1, 2, 0).numpy(), masks.numpy()))
    assert (sheet[TITLE_HEIGHT:] == painted).all() and (painted != image.permute(1, 2, 0).numpy()).any()
