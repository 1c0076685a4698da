"""Validation with models that are known: one that is always right, one that paints what it is told."""

import pytest
import torch

from sami.methods.mask_validation import KINDS, MaskScores, masks_from_prompts
from sami.ops.boxes import box_to_mask, mask_to_box
from sami.ops.masks import innermost_pixel, mask_iou
from sami.ops.prompts import BACKGROUND, FOREGROUND

S = 32


def scene() -> tuple[torch.Tensor, ...]:
    """masks [2, 3, S, S], noise, valid, content: the second image is half padding."""
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    centres, radii = torch.tensor([[8, 8], [20, 12], [16, 24]]), torch.tensor([6, 5, 4])
    discs = torch.stack([(x - cx) ** 2 + (y - cy) ** 2 <= r * r for (cx, cy), r in zip(centres, radii, strict=True)])
    masks = discs.expand(2, -1, -1, -1).clone()
    content = torch.ones(2, 1, S, S, dtype=torch.bool)
    content[1, :, 26:] = False
    masks &= content
    valid = torch.tensor([[True, True, True], [True, True, False]])
    return masks, torch.rand(2, 3, 32, generator=torch.Generator().manual_seed(0)), valid, content


class Painter:
    """Candidates: the box or a square of 7 pixels around each foreground click, shrunk around each background click."""

    def __init__(self) -> None:
        self.questions: list[tuple] = []
        self.painted: list[torch.Tensor] = []

    def __call__(self, prompts, mask_input, *, multimask_output):
        coords, labels = prompts
        self.questions.append((labels, mask_input, multimask_output, coords))
        painted = torch.zeros(2, 3, S, S)
        y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
        for b in range(2):
            for q in range(3):
                for (cx, cy), label in zip(coords[b, q], labels[b, q], strict=True):
                    near = ((x - cx).abs() <= 3) & ((y - cy).abs() <= 3)
                    if label in (FOREGROUND, BACKGROUND):
                        painted[b, q][near] = float(label)
                if labels[b, q, 0] == 2:
                    painted[b, q] = box_to_mask(coords[b, q].flatten(), (S, S)).float()
        self.painted.append(painted.bool())
        K = 3 if multimask_output else 1
        logits = torch.full((2, 3, K, S, S), -1.0)
        logits[:, :, K // 2] = 2 * painted - 1
        scores = torch.zeros(2, 3, K)
        scores[:, :, K // 2] = 1
        return logits, scores


def test_each_kind_of_prompt_asks_what_it_says() -> None:
    masks, noise, _, content = scene()
    decode = Painter()
    answers = dict(masks_from_prompts(decode, masks, noise, content, multimask=False))
    assert set(answers) == set(KINDS) - {"filled_box"}
    assert torch.equal(answers["box"], box_to_mask(mask_to_box(masks), (S, S)) & content)
    assert not any(answer[1, :, 26:].any() for answer in answers.values())  # nothing is found in the padding
    assert [question[0].shape[-1] for question in decode.questions] == [2, 1, 2, 3, 4, 5, 1, 3, 5]
    assert [question[2] for question in decode.questions] == [True, True, *4 * [False], True, False, False]
    assert [question[1] is None for question in decode.questions] == [True, True, *4 * [False], *3 * [True]]
    centre, _ = innermost_pixel(masks)
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    square = ((x - centre[..., :1, None]).abs() <= 3) & ((y - centre[..., 1:, None]).abs() <= 3)
    assert torch.equal(answers["click_1"], square & content)
    for number in range(2, 6):  # each further click is in the error of the answer before
        labels, _, _, coords = decode.questions[number]
        x, y = coords[:, :, -1].long().unbind(-1)
        place, said = (y * S + x).unsqueeze(-1), decode.painted[number - 1] & content
        truth, said = (m.flatten(2).gather(2, place)[..., 0] for m in (masks, said))
        assert (truth != said).all() and torch.equal(labels[..., -1], torch.where(truth, FOREGROUND, BACKGROUND))


def test_a_model_without_background_clicks_gets_none() -> None:
    masks, noise, _, content = scene()
    decode = Painter()
    dict(masks_from_prompts(decode, masks, noise, content, multimask=True))
    assert all(question[2] and question[1] is None for question in decode.questions)
    assert not any((question[0] == BACKGROUND).any() for question in decode.questions)


def test_scores_beside_the_trivial_answers() -> None:
    masks, noise, valid, content = scene()
    scores = MaskScores(torch.device("cpu"))
    scores.update(Painter(), masks, noise, valid, content, multimask=False)
    numbers = {name: float(value) for name, value in scores.compute().items()}
    filled = mask_iou(box_to_mask(mask_to_box(masks), (S, S)), masks)[valid].mean()
    assert numbers["filled_box"] == pytest.approx(float(filled)) == numbers["box"]
    assert numbers["uniform_disc"] < numbers["click_disc"] < 1
    assert numbers.keys() == {*KINDS, "click_disc", "uniform_disc"}
