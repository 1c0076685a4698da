import pytest
import torch

from sami.ops.boxes import mask_to_box
from sami.ops.prompts import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    PAD_LABEL,
    TOP_LEFT,
    add_clicks,
    central_click,
    central_correction,
    choose_prompts,
    noisy_box,
    random_correction,
    sample_pixels,
    scale_prompts,
    tight_box,
    uniform_clicks,
    use_multimask,
)

B, Q, H, W = 3, 5, 24, 31


def blobs(seed: int) -> torch.Tensor:
    """[B, Q, H, W]: discs and noise; the last object of the last image is empty."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    centre = torch.rand(B, Q, 3, 1, 1, generator=rng) * torch.tensor([H, W, 8]).view(3, 1, 1)
    masks = (y - centre[:, :, 0]) ** 2 + (x - centre[:, :, 1]) ** 2 < (centre[:, :, 2] + 2) ** 2
    masks &= torch.rand(B, Q, H, W, generator=rng) < 0.9
    masks[-1, -1] = False
    return masks


def at(masks: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """[B, Q, P]: the mask at (x, y)."""
    x, y = coords.long().unbind(-1)
    return masks.flatten(2).gather(2, y * W + x)


def test_pixels_lie_in_the_region_and_all_of_them_come() -> None:
    masks = blobs(0)
    noise = torch.rand(B, Q, 4000, generator=torch.Generator().manual_seed(0))
    coords, found = sample_pixels(masks, noise)
    assert coords.shape == (B, Q, 4000, 2) and torch.equal(found, masks.flatten(2).any(-1))
    assert at(masks, coords)[found].all()
    x, y = coords[0, 0].long().unbind(-1)
    times = torch.bincount(y * W + x, minlength=H * W).view(H, W)[masks[0, 0]].double()
    assert (times > 0).all() and times.std() < 4 * times.mean().sqrt()  # as many as Poisson would have, roughly
    ends = sample_pixels(masks, torch.tensor([0, 1 - 2**-24]).expand(B, Q, 2))[0]
    first, last = masks[0, 0].nonzero()[[0, -1]].flip(-1)
    assert torch.equal(ends[0, 0], torch.stack([first, last]).float())


def test_clicks_in_a_mask() -> None:
    masks = blobs(1)
    for coords, labels in (uniform_clicks(masks, torch.rand(B, Q, 3)), central_click(masks)):
        assert coords.shape == (*labels.shape, 2)
        assert at(masks, coords)[labels == FOREGROUND].all()
        assert (labels[-1, -1] == PAD_LABEL).all() and (labels == FOREGROUND).sum() == (B * Q - 1) * labels.shape[-1]


@pytest.mark.parametrize("kind", ["random", "central"])
def test_next_click_is_inside_the_error_region_and_its_label_says_which(kind: str) -> None:
    for seed in range(20):
        masks, prediction = blobs(seed), blobs(seed + 100)
        prediction[0, 0] = masks[0, 0]
        if kind == "random":
            noise = torch.rand(B, Q, generator=torch.Generator().manual_seed(seed))
            coords, labels = random_correction(prediction, masks, noise)
        else:
            coords, labels = central_correction(prediction, masks)
        assert coords.shape == (B, Q, 1, 2) and labels.shape == (B, Q, 1)
        right = (prediction == masks).flatten(2).all(-1, keepdim=True)
        assert torch.equal(labels == PAD_LABEL, right) and right[0, 0]
        assert at(masks & ~prediction, coords)[labels == FOREGROUND].all()
        assert at(prediction & ~masks, coords)[labels == BACKGROUND].all()
        assert {FOREGROUND, BACKGROUND} <= set(labels.flatten().tolist())


def test_central_correction_takes_the_deeper_error() -> None:
    masks, prediction = torch.zeros(2, 1, 1, 20, 20, dtype=torch.bool)
    masks[..., 2:7, 2:7] = True  # missed: 5 x 5
    prediction[..., 10:19, 10:19] = True  # too much: 9 x 9
    coords, labels = central_correction(prediction, masks)
    assert coords.flatten().tolist() == [14, 14] and labels.item() == BACKGROUND


def test_box_noise_is_bounded_and_inside() -> None:
    masks = blobs(2)
    boxes = mask_to_box(masks).unflatten(-1, (2, 2))
    coords, labels = tight_box(masks)
    assert torch.equal(coords, boxes) and labels[0, 0].tolist() == [TOP_LEFT, BOTTOM_RIGHT]
    assert (labels[-1, -1] == PAD_LABEL).all()
    exact, _ = noisy_box(masks, torch.full((B, Q, 4), 0.5))
    torch.testing.assert_close(exact, boxes)
    for noise in (torch.zeros(B, Q, 4), torch.ones(B, Q, 4), torch.rand(B, Q, 4)):
        coords, _ = noisy_box(masks, noise, max_noise=3.0)
        assert ((coords - boxes).abs() <= 3 + 1e-5).all()
        assert (coords >= 0).all() and (coords <= torch.tensor([W, H])).all()
        corners, _ = noisy_box(masks, noise)
        assert (corners[:, :, 0] < corners[:, :, 1])[labels[..., 0] != PAD_LABEL].all()


def test_a_box_that_is_known_better_than_the_masks_cells() -> None:
    masks = blobs(2)
    known = mask_to_box(masks) + torch.tensor([-0.3, -0.2, 0.25, 0.4])
    coords, labels = noisy_box(masks, torch.full((B, Q, 4), 0.5), boxes=known)
    there = labels[..., 0] == TOP_LEFT
    limit = torch.tensor([W, H, W, H])
    torch.testing.assert_close(coords.flatten(2)[there], torch.minimum(known.clamp(min=0), limit)[there])
    assert torch.equal(labels, tight_box(masks)[1])


def test_box_noise_has_a_tenth_of_the_side_as_deviation() -> None:
    masks = torch.zeros(1, 1, 400, 600, dtype=torch.bool)
    masks[..., 150:250, 200:400] = True  # 100 high, 200 wide
    noise = torch.rand(1, 20000, 4, generator=torch.Generator().manual_seed(0))
    coords, _ = noisy_box(masks.expand(1, 20000, -1, -1)[:, :2000], noise[:, :2000], max_noise=1000)
    deviation = (coords - torch.tensor([[200.0, 150], [400, 250]])).std(dim=1)[0]
    torch.testing.assert_close(deviation, torch.tensor([[20.0, 10], [20, 10]]), rtol=0.05, atol=0)


def test_choose_and_add() -> None:
    masks = blobs(3)
    click, box = central_click(masks), tight_box(masks)
    take = torch.rand(B, Q) < 0.5
    take[0, :2] = torch.tensor([True, False])
    coords, labels = choose_prompts(click, box, take)
    assert labels[0, 0].tolist() == [FOREGROUND, PAD_LABEL] and labels[0, 1].tolist() == [TOP_LEFT, BOTTOM_RIGHT]
    assert torch.equal(coords[0, 0, :1], click[0][0, 0]) and torch.equal(coords[0, 1], box[0][0, 1])
    more = add_clicks((coords, labels), click)
    assert more[0].shape == (B, Q, 3, 2) and torch.equal(more[1][..., 2:], click[1])


def test_scaled_clicks_stay_on_the_centre_of_what_they_cover() -> None:
    coords = torch.tensor([[[[0.0, 0.0], [3.0, 5.0], [4.0, 6.0]]]])
    labels = torch.tensor([[[FOREGROUND, TOP_LEFT, BOTTOM_RIGHT]]])
    scaled, same = scale_prompts((coords, labels), 4)
    assert scaled[0, 0].tolist() == [[1.5, 1.5], [12, 20], [16, 24]] and torch.equal(same, labels)


@pytest.mark.parametrize(("decoder", "expected"), [("efficient_sam", [1, 1, 1, 1]), ("sam", [1, 1, 0, 0])])
def test_which_prompts_are_answered_by_the_best_of_several(decoder, expected) -> None:
    prompts = ((1, False), (0, True), (2, False), (1, True))
    found = [use_multimask(decoder, num_clicks=clicks, has_box=box) for clicks, box in prompts]
    assert found == [bool(one) for one in expected]
