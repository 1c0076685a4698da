"""The loss of masks, number by number, against loops over pixels."""

import math

import pytest
import torch

from sami.losses import dice_loss, focal_loss, mask_loss
from sami.ops.masks import enlarge

B, Q, K, S = 2, 3, 3, 8


def example(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """low_res_masks [B, Q, K, S/2, S/2], iou_predictions [B, Q, K], masks [B, Q, S, S], valid [B, Q]."""
    rng = torch.Generator().manual_seed(seed)
    low_res_masks = 3 * torch.randn(B, Q, K, S // 2, S // 2, generator=rng)
    masks = torch.rand(B, Q, S, S, generator=rng) < 0.3
    valid = torch.tensor([[True, True, False], [True, False, False]])
    return low_res_masks, torch.rand(B, Q, K, generator=rng), masks, valid


def slow(low_res_masks, iou_predictions, masks, valid) -> tuple[float, float, float]:
    """(focal, dice, IoU error) as the papers write them, one pixel after another."""
    logits = enlarge(low_res_masks, (S, S)).tolist()
    images = []
    for b in range(B):
        objects = []
        for q in range(Q):
            if not valid[b, q]:
                continue
            candidates = []
            for k in range(K):
                focal = overlap = area = hit = union = 0.0
                for y in range(S):
                    for x in range(S):
                        p = 1 / (1 + math.exp(-logits[b][q][k][y][x]))
                        truth = bool(masks[b, q, y, x])
                        p_t, alpha_t = (p, 0.25) if truth else (1 - p, 0.75)
                        focal -= alpha_t * (1 - p_t) ** 2 * math.log(p_t) / S**2
                        overlap += p * truth
                        area += p + truth
                        hit += (p > 0.5) and truth
                        union += (p > 0.5) or truth
                dice = 1 - (2 * overlap + 1) / (area + 1)
                candidates.append((20 * focal + dice, focal, dice, hit / union))
            best = min(candidates)
            error = sum((float(iou_predictions[b, q, k]) - candidates[k][3]) ** 2 for k in range(K)) / K
            objects.append((best[1], best[2], error))
        images.append([sum(parts) / len(objects) for parts in zip(*objects, strict=True)])
    return tuple(sum(parts) / len(images) for parts in zip(*images, strict=True))


def test_values_against_a_slow_loop() -> None:
    for seed in range(3):
        loss = mask_loss(*example(seed))
        focal, dice, iou = slow(*example(seed))
        assert [float(part) for part in loss[1:]] == pytest.approx([focal, dice, iou], rel=1e-4)
        assert float(loss.total) == pytest.approx(20 * focal + dice + iou, rel=1e-4)
    weights = {"focal_weight": 1.0, "dice_weight": 0.0, "iou_weight": 0.0}
    assert mask_loss(*example(), **weights).total == mask_loss(*example(), **weights).focal


def test_padded_prompts_weigh_nothing_whatever_they_hold() -> None:
    low_res_masks, iou_predictions, masks, valid = example()
    expected = mask_loss(low_res_masks, iou_predictions, masks, valid)
    low_res_masks[~valid], iou_predictions[~valid], masks[~valid] = torch.inf, torch.nan, True
    low_res_masks.requires_grad_()
    loss = mask_loss(low_res_masks, iou_predictions, masks, valid)
    assert torch.equal(torch.stack(loss), torch.stack(expected))
    assert mask_loss(low_res_masks, iou_predictions, masks, torch.zeros_like(valid)).total == 0


def test_only_the_best_candidate_learns_the_mask_and_all_learn_their_iou() -> None:
    low_res_masks, iou_predictions, masks, valid = example()
    low_res_masks[:, :, 1] = torch.where(masks, 2.0, -2.0)[..., ::2, ::2]
    low_res_masks.requires_grad_(), iou_predictions.requires_grad_()
    loss = mask_loss(low_res_masks, iou_predictions, masks, valid)
    loss.total.backward()
    learns = low_res_masks.grad.flatten(3).abs().sum(-1) > 0  # [B, Q, K]
    assert torch.equal(learns.sum(-1), valid.long())
    assert torch.equal(iou_predictions.grad != 0, valid.unsqueeze(-1).expand(-1, -1, K))


def test_two_halves_of_a_batch_average_to_the_whole() -> None:
    """So that devices and accumulation do not change what is learned, with different numbers of objects."""
    example_batch = example(5)
    whole = mask_loss(*example_batch).total
    halves = [mask_loss(*(part[i : i + 1] for part in example_batch)).total for i in range(2)]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)


def test_limits() -> None:
    masks = torch.rand(4, 16, 16) < 0.4
    sure = torch.where(masks, 30.0, -30.0)
    assert focal_loss(sure, masks).abs().max() < 1e-6 and dice_loss(sure, masks).abs().max() < 1e-6
    assert torch.isfinite(focal_loss(-1e4 * sure, masks)).all() and (dice_loss(-sure, masks) > 0.9).all()
    half = focal_loss(torch.zeros(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))
    assert float(half) == pytest.approx(0.25 * 0.25 * math.log(2))


@pytest.mark.parametrize(("chance", "object_wins"), [(0.7, False), (0.8, True)])
def test_focal_loss_calls_a_pixel_object_only_where_three_to_one_are_for_it(chance: float, object_wins: bool) -> None:
    logit = torch.zeros(1, 1, requires_grad=True)
    loss = chance * focal_loss(logit, torch.ones(1, 1, dtype=torch.bool))
    (loss + (1 - chance) * focal_loss(logit, torch.zeros(1, 1, dtype=torch.bool))).backward()
    assert (logit.grad.item() < 0) == object_wins
