import pytest
import torch

from sami.metrics.mask_iou import BestDiscIoU, PromptedIoU
from sami.ops.masks import mask_iou


def test_mean_over_objects_of_all_updates() -> None:
    metric = PromptedIoU(["box", "click"])
    metric.update({"click": torch.tensor([0.1, 0.2, 0.3]), "box": torch.tensor([1.0, 0.5, 0.0])})
    metric.update({"box": torch.tensor([0.5]), "click": torch.tensor([0.4])})
    metric.update({"box": torch.zeros(0), "click": torch.zeros(0)})
    means = {kind: float(value) for kind, value in metric.compute().items()}
    assert means == pytest.approx({"box": 0.5, "click": 0.25})
    assert torch.isnan(PromptedIoU(["box"]).compute()["box"])


def test_best_disc_against_every_disc_drawn() -> None:
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 20, 30, generator=rng) < 0.5
    clicks = (torch.rand(6, 2, generator=rng) * torch.tensor([30, 20])).floor()
    clicks[0], clicks[1] = torch.tensor([0, 0]), torch.tensor([29, 19])
    y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    distance = torch.hypot(x - clicks[..., 0, None, None], y - clicks[..., 1, None, None])
    means = [mask_iou(distance <= radius * 30, masks).mean() for radius in BestDiscIoU.radii]
    metric = BestDiscIoU()
    metric.update(masks[:2], clicks[:2])
    metric.update(masks[2:], clicks[2:])
    metric.update(masks[:0], clicks[:0])
    assert metric.total / 6 == pytest.approx(torch.stack(means).tolist(), abs=1e-6)
    assert float(metric.compute()) == pytest.approx(float(torch.stack(means).max()), abs=1e-6)


def test_a_disc_is_found_where_all_objects_are_that_disc() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = torch.tensor([[30.0, 30.0], [20.0, 40.0]])
    masks = torch.hypot(x - centres[..., 0, None, None], y - centres[..., 1, None, None]) <= BestDiscIoU.radii[16] * 64
    metric = BestDiscIoU()
    metric.update(masks, centres)
    assert metric.compute() == 1
