"""The protocols with a decoder that only remembers what it was asked."""

import pytest
import torch

from sami.methods.prompt_protocols import PointsProtocol, SamProtocol
from sami.models.sam import most_confident
from sami.ops.boxes import mask_to_box
from sami.ops.prompts import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, PAD_LABEL, TOP_LEFT

B, Q, S, SIDE = 2, 40, 16, 64


class Recorder:
    """Answers with random masks and keeps the questions."""

    def __init__(self, *, right_from: int = 99, masks: torch.Tensor | None = None) -> None:
        self.questions: list[tuple] = []
        self.answers: list[tuple] = []
        self.right_from, self.masks = right_from, masks

    def __call__(self, prompts, mask_input, *, multimask_output):
        self.questions.append((*prompts, mask_input, multimask_output))
        rng = torch.Generator().manual_seed(len(self.questions))
        K = 3 if multimask_output else 1
        low_res_masks = torch.randn(B, Q, K, S, S, generator=rng).requires_grad_()
        if len(self.questions) > self.right_from:
            low_res_masks = torch.where(self.masks, 1.0, -1.0).unsqueeze(2).repeat(1, 1, K, 1, 1)
        self.answers.append((low_res_masks, torch.rand(B, Q, K, generator=rng)))
        return self.answers[-1]


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(7)
    masks = torch.zeros(B, Q, S, S, dtype=torch.bool)
    for q in range(Q):
        y, x = torch.randint(0, 10, (2,), generator=rng).tolist()
        masks[:, q, y : y + 6, x : x + 5] = True
    return masks, torch.rand(B, Q, 32, generator=rng)


def test_the_papers_eleven_iterations() -> None:
    """arXiv:2304.02643, App. A: a first prompt, eight clicks, two rounds without; three masks, then one."""
    masks, noise = scene()
    decode = Recorder()
    rounds = list(SamProtocol(num_clicks=8, num_refinements=2).iterations(decode, masks, noise, image_size=SIDE))
    assert len(rounds) == len(decode.questions) == 11
    labels = [question[1] for question in decode.questions]
    assert [label.shape[2] for label in labels] == [2, *range(3, 12), 11]  # nothing is added for the last
    assert [question[3] for question in decode.questions] == [True] + 10 * [False]
    new = labels[-1][..., 2:]  # [B, Q, 9]: one of them is the round without a click
    assert ((new == PAD_LABEL).sum(-1) == 1).all()
    assert len(set((new == PAD_LABEL).int().argmax(-1).flatten().tolist())) == 9  # each round is somebody's
    assert torch.equal(labels[-1], labels[-2])


def test_first_prompt_is_a_click_or_a_noisy_box_with_equal_chance() -> None:
    masks, noise = scene()
    decode = Recorder()
    list(SamProtocol(num_clicks=0, num_refinements=0).iterations(decode, masks, noise, image_size=SIDE))
    ((coords, labels, mask_input, multimask),) = decode.questions
    assert mask_input is None and multimask
    is_click = labels[..., 0] == FOREGROUND
    assert torch.equal(is_click, noise[..., 0] < 0.5) and 0.35 < is_click.float().mean() < 0.65
    assert (labels[is_click][:, 1] == PAD_LABEL).all()
    assert (labels[~is_click] == torch.tensor([TOP_LEFT, BOTTOM_RIGHT])).all()
    cell = ((coords[..., 0, :] + 0.5) * S / SIDE).floor().long()  # of the click, in the masks
    inside = masks.flatten(2).gather(2, (cell[..., 1] * S + cell[..., 0]).clamp(0, S * S - 1).unsqueeze(-1))[..., 0]
    assert inside[is_click].all()
    box = coords[~is_click]
    assert (box[:, 0] < box[:, 1]).all() and (box >= 0).all() and (box <= SIDE).all()
    tight = masks[~is_click].any(1).int().argmax(-1) * SIDE / S  # left edges
    moved = (box[:, 0, 0] - tight).abs()
    assert 0 < moved.max() <= 20 / 1024 * SIDE + 1e-4


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
def test_how_often_the_first_prompt_is_a_box(chance) -> None:
    masks, noise = scene()
    decode = Recorder()
    list(
        SamProtocol(num_clicks=0, num_refinements=0, box_chance=chance).iterations(
            decode, masks, noise, image_size=SIDE
        )
    )
    assert torch.equal(decode.questions[0][1][..., 0] == TOP_LEFT, noise[..., 0] >= 1 - chance)


def test_corrections_are_in_the_error_of_the_most_confident_mask_which_comes_back_as_mask_prompt() -> None:
    masks, noise = scene()
    decode = Recorder()
    list(SamProtocol(num_clicks=3, num_refinements=1).iterations(decode, masks, noise, image_size=SIDE))
    assert len(decode.questions) == 5
    for number in range(1, 5):
        coords, labels, mask_input, _ = decode.questions[number]
        low_res_masks, iou_predictions = decode.answers[number - 1]
        best = torch.stack([low_res_masks[b, q, iou_predictions[b, q].argmax()] for b in range(B) for q in range(Q)])
        assert torch.equal(mask_input.flatten(0, 1), best) and not mask_input.requires_grad
        if number == 4:
            assert labels.shape == decode.questions[3][1].shape  # the last round brings no click
            continue
        cell = ((coords[..., -1, :] + 0.5) * S / SIDE).floor().long()
        place = (cell[..., 1] * S + cell[..., 0]).unsqueeze(-1)
        truth, said = (m.flatten(2).gather(2, place)[..., 0] for m in (masks, mask_input > 0))
        assert (truth != said).all()
        assert torch.equal(labels[..., -1], torch.where(truth, FOREGROUND, BACKGROUND))


def test_no_click_where_nothing_is_wrong() -> None:
    masks, noise = scene()
    decode = Recorder(right_from=0, masks=masks)
    list(SamProtocol(num_clicks=2, num_refinements=0).iterations(decode, masks, noise, image_size=SIDE))
    assert (decode.questions[-1][1][..., 2:] == PAD_LABEL).all()


def test_clicks_of_different_rounds_are_drawn_anew() -> None:
    masks, noise = scene()
    decode = Recorder(right_from=0, masks=torch.zeros_like(masks))  # never finds anything: all of the mask is missed
    list(SamProtocol(num_clicks=3, num_refinements=0).iterations(decode, masks, noise, image_size=SIDE))
    coords = decode.questions[-1][0]
    first, *others = (coords[..., number, :] for number in (2, 3, 4))
    assert all((first != other).any(-1).float().mean() > 0.8 for other in others)


def test_points_protocol_asks_once_with_foreground_only() -> None:
    masks, noise = scene()
    decode = Recorder()
    list(PointsProtocol(max_points=6).iterations(decode, masks, noise, image_size=SIDE))
    ((_, labels, mask_input, multimask),) = decode.questions
    assert mask_input is None and multimask and labels.shape == (B, Q, 6)
    is_click = labels[..., 0] == FOREGROUND
    counts = (labels == FOREGROUND).sum(-1)
    assert set(counts[is_click].tolist()) == {1, 2, 3, 4, 5, 6} and not (labels == BACKGROUND).any()
    assert (labels[~is_click][:, :2] == torch.tensor([TOP_LEFT, BOTTOM_RIGHT])).all()
    assert (labels[~is_click][:, 2:] == PAD_LABEL).all()


@pytest.mark.parametrize("protocol", [SamProtocol(num_clicks=0, num_refinements=0), PointsProtocol(max_points=3)])
def test_boxes_that_are_known_better_are_asked_for(protocol) -> None:
    masks, noise = scene()
    noise[..., 2:6] = 0.5  # no noise
    boxes = mask_to_box(masks) + 0.25
    decode = Recorder()
    list(protocol.iterations(decode, masks, noise, image_size=SIDE, boxes=boxes))
    ((coords, labels, *_),) = decode.questions
    is_box = labels[..., 0] == TOP_LEFT
    assert is_box.any() and torch.equal(coords[is_box][:, :2].flatten(1), boxes[is_box] * SIDE / S)


def test_everything_follows_from_the_noise() -> None:
    masks, noise = scene()
    for protocol in (SamProtocol(num_clicks=3, num_refinements=2), PointsProtocol(max_points=4)):
        first, second, other = Recorder(), Recorder(), Recorder()
        for decode, numbers in ((first, noise), (second, noise.clone()), (other, noise.flip(0))):
            list(protocol.iterations(decode, masks, numbers, image_size=SIDE))
        for a, b in zip(first.questions, second.questions, strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert not torch.equal(first.questions[0][1], other.questions[0][1])


def test_most_confident() -> None:
    low_res_masks = torch.arange(2 * 1 * 3).view(2, 1, 3, 1, 1).float()
    best = most_confident(low_res_masks, torch.tensor([[[0.1, 0.9, 0.2]], [[0.5, 0.4, 0.6]]]))
    assert best.flatten().tolist() == [1, 5]


@pytest.mark.parametrize(
    "arguments", [{"num_clicks": -1, "num_refinements": 0}, {"num_clicks": 25, "num_refinements": 0}]
)
def test_numbers_that_make_no_sense(arguments) -> None:
    with pytest.raises(ValueError, match="give 0 to 23 clicks"):
        SamProtocol(**arguments)
    with pytest.raises(ValueError, match="0, 1 or 2 refinements"):
        SamProtocol(num_clicks=1, num_refinements=3)
    with pytest.raises(ValueError, match=r"box_chance=1\.5"):
        SamProtocol(num_clicks=1, num_refinements=0, box_chance=1.5)
    with pytest.raises(ValueError, match="give 1 to 23"):
        PointsProtocol(max_points=0)
