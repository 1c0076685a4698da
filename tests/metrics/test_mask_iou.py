import pytest
import torch

from sami.metrics.mask_iou import BestDiscIoU, PromptedIoU
from sami.ops.masks import mask_iou


def test_mean_over_valid_objects_of_all_updates() -> None:
    metric = PromptedIoU(["box", "click"])
    valid = torch.tensor([[True, True], [True, False]])
    first = {"click": torch.tensor([[0.1, 0.2], [0.3, 9.0]]), "box": torch.tensor([[1.0, 0.5], [0.0, 9.0]])}
    metric.update(first, valid)
    metric.update({"box": torch.tensor([[0.5]]), "click": torch.tensor([[0.4]])}, torch.tensor([[True]]))
    metric.update({"box": torch.zeros(2, 0), "click": torch.zeros(2, 0)}, torch.zeros(2, 0, dtype=torch.bool))
    means = {kind: float(value) for kind, value in metric.compute().items()}
    assert means == pytest.approx({"box": 0.5, "click": 0.25})
    assert torch.isnan(PromptedIoU(["box"]).compute()["box"])


def test_best_disc_against_every_disc_drawn() -> None:
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 3, 20, 30, generator=rng) < 0.5
    clicks = torch.rand(2, 3, 2, generator=rng) * torch.tensor([30, 20])
    clicks = clicks.floor()
    valid = torch.tensor([[True, True, False], [True, True, True]])
    y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    distance = torch.hypot(x - clicks[..., 0, None, None], y - clicks[..., 1, None, None])
    means = [mask_iou(distance <= radius * 30, masks)[valid].mean() for radius in BestDiscIoU.radii]
    metric = BestDiscIoU()
    metric.update(masks[:1], clicks[:1], valid[:1])
    metric.update(masks[1:], clicks[1:], valid[1:])
    metric.update(masks[:, :0], clicks[:, :0], valid[:, :0])
    assert float(metric.compute()) == pytest.approx(float(torch.stack(means).max()), abs=1e-6)


def test_a_disc_is_found_where_all_objects_are_that_disc() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = torch.tensor([[[30.0, 30.0], [20.0, 40.0]]])
    masks = torch.hypot(x - centres[..., 0, None, None], y - centres[..., 1, None, None]) <= BestDiscIoU.radii[16] * 64
    metric = BestDiscIoU()
    metric.update(masks, centres, torch.ones(1, 2, dtype=torch.bool))
    assert metric.compute() == 1
