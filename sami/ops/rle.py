"""COCO's run-length encoding (RLE) of masks: lengths of runs of 0 and 1 in turn, down one column after another.

The compressed form writes each length in groups of five bits, and from the fourth on the difference from the length
two before, which is that of the last run of the same kind.

H W pixels   n runs   h w cells of another grid
"""

import torch
from torch import Tensor


def counts_from_string(text: bytes | str) -> Tensor:
    """[n] int64: run lengths from COCO's compressed form.

    Raises:
        ValueError: a character that does not occur in it, a code cut short, or a negative length.
    """
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    if not data:
        return torch.zeros(0, dtype=torch.int64)
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8).long() - 48
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("no run-length code: it holds characters outside of '0' to 'o'")
    last = codes < 32  # the other groups say that more follow
    if not last[-1]:
        raise ValueError("the run-length code is cut short")
    number = last.cumsum(0) - last.long()  # [groups] which value a group belongs to
    first = torch.cat([last.new_ones(1), last[:-1]])
    position = torch.arange(len(codes)) - torch.arange(len(codes))[first][number]  # of the group in its value
    if position.max() > 11:
        raise ValueError("the run-length code holds a number of more than 60 bits")
    values = torch.zeros(int(number[-1]) + 1, dtype=torch.int64)
    values.index_add_(0, number, (codes & 31) << (5 * position))
    negative = codes[last] >= 16
    values -= negative.long() << (5 * (position[last] + 1))
    values[1::2] = values[1::2].cumsum(0)
    values[2::2] = values[2::2].cumsum(0)
    if len(values) and values.min() < 0:
        raise ValueError("the run-length code holds a negative length")
    return values


def counts_to_string(counts: Tensor) -> bytes:
    """COCO's compressed form of [n] run lengths; the inverse of `counts_from_string`."""
    values = counts.long().clone()
    values[3:] -= counts[1:-2].long()
    groups, more = [], []
    going = torch.ones_like(values, dtype=torch.bool)
    while going.any():
        low = values & 31
        values = values >> 5
        goes_on = torch.where((low & 16) > 0, values != -1, values != 0)
        groups.append(torch.where(going, low + 48 + 32 * goes_on, 0))
        more.append(going)
        going = going & goes_on
    if not groups:
        return b""
    return bytes(torch.stack(groups, dim=1)[torch.stack(more, dim=1)].byte().tolist())


def mask_to_rle(mask: Tensor) -> Tensor:
    """[H, W] bool -> [n] int64 run lengths; the first is of zeros, 0 where the mask begins with a one."""
    pixels = mask.bool().T.reshape(-1)
    if not len(pixels):
        return torch.zeros(0, dtype=torch.int64)
    changes = (pixels[1:] != pixels[:-1]).nonzero()[:, 0] + 1
    start = changes.new_zeros(2 if pixels[0] else 1)
    return torch.cat([start, changes, changes.new_tensor([len(pixels)])]).diff()


def rle_to_mask(counts: Tensor, size: tuple[int, int]) -> Tensor:
    """[n] run lengths -> [H, W] bool; see `check_counts`."""
    check_counts(counts, size)
    kind = torch.arange(len(counts)) % 2 == 1
    return kind.repeat_interleave(counts).reshape(size[1], size[0]).T


def check_counts(counts: Tensor, size: tuple[int, int]) -> None:
    """Raises ValueError where [n] run lengths do not add up to H*W."""
    if int(counts.sum()) != size[0] * size[1]:
        raise ValueError(f"runs of {int(counts.sum())} pixels in a mask of {size[0]}x{size[1]}")


def runs_of_ones(counts: Tensor) -> tuple[Tensor, Tensor]:
    """[n] run lengths -> where each run of ones starts and stops, down the columns; empty runs are left out."""
    ends = counts.cumsum(0)
    starts, stops = ends[0::2][: len(ends) // 2], ends[1::2]
    return starts[stops > starts], stops[stops > starts]


Window = tuple[int, int, int, int]  # (top, left, height, width) in pixels


def counts_to_box(counts: Tensor, size: tuple[int, int], window: Window | None = None) -> Tensor:
    """[4] float32: the tightest box around what the mask has in the window, see `sami.ops.boxes`; zeros for nothing.

    Each run of ones is up to three rectangles: the end of a column, whole columns, the beginning of one. Nothing is
    decoded.

    Args:
        counts: [n] run lengths that add up to H*W.
        size: (H, W) of the mask.
        window: where pixels count. The box stays in the frame of the mask.
    """
    H = size[0]
    starts, stops = runs_of_ones(counts)
    last = stops - 1
    (left, right), (top, bottom) = (starts // H, last // H), (starts % H, last % H + 1)
    one, none, full = left == right, torch.zeros_like(top), torch.full_like(top, H)
    x0, x1 = torch.cat([left, left + 1, right]), torch.cat([left + 1, right, right + 1])
    y0, y1 = (
        torch.cat([top, none, torch.where(one, top, none)]),
        torch.cat([torch.where(one, bottom, full), full, bottom]),
    )
    row, column, height, width = window or (0, 0, *size)
    x0, x1 = x0.clamp(min=column), x1.clamp(max=column + width)
    y0, y1 = y0.clamp(min=row), y1.clamp(max=row + height)
    seen = (x0 < x1) & (y0 < y1)
    if not seen.any():
        return torch.zeros(4)
    return torch.stack([x0[seen].min(), y0[seen].min(), x1[seen].max(), y1[seen].max()]).float()


def mask_cells(
    counts: Tensor, size: tuple[int, int], rows: Tensor, columns: Tensor, window: Window | None = None
) -> Tensor:
    """[h, w] bool: the cells that the mask covers at least half of; arguments as of `mask_coverage`.

    A mask too small or too thin for that gives the cells that it covers at least half as much as the one that it
    covers most, so that a mask with a pixel within the cells is never lost.
    """
    coverage = mask_coverage(counts, size, rows, columns, window)
    most = coverage.max()
    return (coverage >= (0.5 if most >= 0.5 else most / 2)) & (coverage > 0)


def mask_coverage(
    counts: Tensor, size: tuple[int, int], rows: Tensor, columns: Tensor, window: Window | None = None
) -> Tensor:
    """[h, w] float32: the fraction of each cell of another grid that the mask covers, without decoding it.

    The number of ones before a position in the runs is linear between run ends, so that of a piece of a column between
    two fractional heights is a difference of two look-ups. Work grows with the mask's box, not with the image.

    Args:
        counts: [n] run lengths that add up to H*W.
        size: (H, W) of the mask.
        rows: [h + 1] borders of the cells in pixels of the mask; what lies outside of it is covered by nothing.
        columns: [w + 1] likewise. Falling borders mirror the mask.
        window: a part of the mask outside of which nothing counts.
    """
    H = size[0]
    coverage = torch.zeros(len(rows) - 1, len(columns) - 1)
    starts, stops = runs_of_ones(counts)
    if not len(starts):
        return coverage
    left, right = int(starts[0]) // H, (int(stops[-1]) - 1) // H + 1  # columns that the mask touches
    within = bool((starts // H == (stops - 1) // H).all())  # no run goes on in the next column
    top, bottom = (int((starts % H).min()), int(((stops - 1) % H).max()) + 1) if within else (0, H)
    touched = [int(i) for i in torch.searchsorted(rows, torch.tensor([top, bottom], dtype=rows.dtype), right=True)]
    first, last = max(touched[0] - 1, 0), min(touched[1], len(rows) - 1)  # borders around it
    if last <= first:
        return coverage
    row, column, height, width = window or (0, 0, *size)
    heights = rows[first : last + 1].double().clamp(row, row + height)  # [k + 1]
    positions = (torch.arange(left, right).unsqueeze(1) * H + heights).flatten()  # [(right - left) * (k + 1)]
    ends = counts.cumsum(0)
    run = torch.searchsorted(ends.double(), positions, right=True).clamp(max=len(ends) - 1)
    length = torch.where(torch.arange(len(counts)) % 2 == 1, counts, 0)
    before, begin = (length.cumsum(0) - length).double(), (ends - counts).double()
    ones = before[run] + (positions - begin[run]) * (run % 2)
    covered = ones.unflatten(0, (right - left, -1)).diff(dim=1)  # [columns, k] pixels of each column in each row
    total = torch.cat([covered.new_zeros(1, covered.shape[1]), covered.cumsum(0)])  # to the left of each column
    borders = columns.double().clamp(column, column + width).clamp(left, right) - left  # [w + 1]
    whole = borders.floor().long()
    beyond = (whole + 1).clamp(max=right - left)
    area = torch.lerp(total[whole], total[beyond], (borders - whole).unsqueeze(1)).diff(dim=0).abs()  # [w, k]
    cell = columns.double().diff().abs().unsqueeze(1) * rows.double().diff()[first:last]  # [w, k]
    coverage[first:last] = (area / cell).T.float()
    return coverage
