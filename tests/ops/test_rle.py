import pytest
import torch

from sami.ops.area_resize import overlap_weights
from sami.ops.boxes import mask_to_box
from sami.ops.rle import (
    counts_from_string,
    counts_to_box,
    counts_to_string,
    mask_cells,
    mask_coverage,
    mask_to_rle,
    rle_to_mask,
)

SIZES = [(1, 1), (1, 7), (9, 1), (5, 5), (64, 37), (120, 250)]


def random_masks(size: tuple[int, int]) -> list[torch.Tensor]:
    """Empty, full, noise of several densities, and blobs with long runs."""
    rng = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    masks = [torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)]
    masks += [torch.rand(size, generator=rng) < density for density in (0.02, 0.5, 0.98)]
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    across = torch.zeros(size, dtype=torch.bool)  # one run, from the foot of a column to the head of the next
    across[-2:, 0], across[:2, 1:2] = True, True
    masks.append(across)
    for _ in range(3):
        cy, cx, r = (torch.rand(3, generator=rng) - 0.5).tolist()
        masks.append((y - cy) ** 2 + (x - cx) ** 2 < r**2 + 0.05)
    return masks


@pytest.mark.parametrize("size", SIZES)
def test_decode_inverts_encode(size) -> None:
    for mask in random_masks(size):
        counts = mask_to_rle(mask)
        assert torch.equal(rle_to_mask(counts, size), mask)
        assert torch.equal(counts_from_string(counts_to_string(counts)), counts)
        assert int(counts.sum()) == mask.numel() and (counts[1:] > 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_the_box_of_run_lengths_is_that_of_the_pixels_in_the_window(size) -> None:
    rng = torch.Generator().manual_seed(3)
    for mask in random_masks(size):
        counts = mask_to_rle(mask)
        assert torch.equal(counts_to_box(counts, size), mask_to_box(mask))
        for _ in range(6):
            (top, bottom), (left, right) = (torch.randint(0, side + 1, (2,), generator=rng).sort()[0] for side in size)
            seen = torch.zeros_like(mask)
            seen[top:bottom, left:right] = mask[top:bottom, left:right]
            window = (int(top), int(left), int(bottom - top), int(right - left))
            assert torch.equal(counts_to_box(counts, size, window), mask_to_box(seen))


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_is_pycocotools(size) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for mask in random_masks(size):
        theirs = coco.encode(mask.numpy().astype("uint8").copy(order="F"))
        assert counts_to_string(mask_to_rle(mask)) == theirs["counts"]
        assert torch.equal(rle_to_mask(counts_from_string(theirs["counts"]), size), mask)
        uncompressed = coco.frPyObjects({"size": list(size), "counts": mask_to_rle(mask).tolist()}, *size)
        assert uncompressed["counts"] == theirs["counts"]


def test_long_runs_and_negative_differences() -> None:
    """Lengths far beyond five bits, falling and rising."""
    counts = torch.tensor([0, 3_000_000, 1, 2, 4_000_000, 40_000, 5])
    assert torch.equal(counts_from_string(counts_to_string(counts)), counts)
    coco = pytest.importorskip("pycocotools.mask")
    size = [int(counts.sum()), 1]
    assert coco.frPyObjects({"size": size, "counts": counts.tolist()}, *size)["counts"] == counts_to_string(counts)


@pytest.mark.parametrize(
    ("text", "message"), [("a b", "characters"), ("oo", "cut short"), ("1 \xff", "characters"), ("N", "negative")]
)
def test_a_damaged_code_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts_from_string(text)


def test_runs_of_another_size_are_an_error() -> None:
    with pytest.raises(ValueError, match="runs of 12 pixels in a mask of 3x5"):
        rle_to_mask(torch.tensor([4, 8]), (3, 5))


@pytest.mark.parametrize("size", [(5, 5), (64, 37), (120, 250)])
@pytest.mark.parametrize("cells", [(7, 3), (16, 16), (130, 90)])
def test_coverage_is_the_mean_over_the_area_of_each_cell(size, cells) -> None:
    rows, columns = (torch.arange(n + 1) * (side / n) for n, side in zip(cells, size, strict=True))
    weights = [overlap_weights(side, n).double() for n, side in zip(cells, size, strict=True)]
    for mask in random_masks(size):
        expected = (weights[0] @ mask.double() @ weights[1].T).float()
        torch.testing.assert_close(mask_coverage(mask_to_rle(mask), size, rows, columns), expected, rtol=0, atol=1e-5)


def test_coverage_on_its_own_grid_is_the_mask_and_falling_borders_mirror_it() -> None:
    for mask in random_masks((33, 21)):
        rows, columns = torch.arange(34.0), torch.arange(22.0)
        assert torch.equal(mask_coverage(mask_to_rle(mask), (33, 21), rows, columns), mask.float())
        mirrored = mask_coverage(mask_to_rle(mask), (33, 21), rows, 21 - columns)
        assert torch.equal(mirrored, mask.flip(1).float())


def test_nothing_covers_what_lies_beyond_the_mask() -> None:
    """A frame with padding to the right and below: the border cell counts its padded part as uncovered."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    coverage = mask_coverage(mask_to_rle(mask), (6, 4), torch.arange(5) * 2.0, torch.arange(5) * 1.6)
    assert torch.allclose(coverage[0], torch.tensor([1, 1, 0.5, 0])) and (coverage[3] == 0).all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_nothing_counts_outside_of_a_window(mirrored) -> None:
    size, (top, left, height, width) = (33, 21), (5, 3, 17, 11)
    rows, columns = torch.linspace(0, 33, 8), torch.linspace(0, 21, 6)
    columns = columns.flip(0) if mirrored else columns
    for mask in random_masks(size):
        inside = torch.zeros_like(mask)
        inside[top : top + height, left : left + width] = mask[top : top + height, left : left + width]
        found = mask_coverage(mask_to_rle(mask), size, rows, columns, (top, left, height, width))
        torch.testing.assert_close(found, mask_coverage(mask_to_rle(inside), size, rows, columns))


def test_cells_of_masks_that_fill_none() -> None:
    borders = torch.arange(5) * 4.0  # cells of 4 x 4 pixels
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[0, 4:8, 2:10] = True  # one cell and half of two
    masks[1, 9, 9] = True  # a pixel
    masks[2, 2:3, 1:15] = True  # a line through four cells
    masks[3, 7:9, 7:8] = True  # half in one cell, half in another
    cells = torch.stack([mask_cells(mask_to_rle(mask), (16, 16), borders, borders) for mask in masks])
    assert cells.dtype == torch.bool
    assert [found.nonzero().tolist() for found in cells] == [
        [[1, 0], [1, 1], [1, 2]], [[2, 2]], [[0, 0], [0, 1], [0, 2], [0, 3]], [[1, 1], [2, 1]], []
    ]  # fmt: skip
