import pytest
import torch

from sami.metrics.agreement import FeatureAgreement, explained_variance


def test_perfect_mean_and_worse() -> None:
    target = torch.randn(4, 5, 6) * torch.arange(1, 7) + 3
    mean = target.mean(dim=(0, 1)).expand_as(target)
    for prediction, expected in ((target, 1.0), (mean, 0.0), (2 * mean - target, -3.0)):
        assert explained_variance(prediction, target).item() == pytest.approx(expected, abs=1e-5)


def test_scale_of_the_teacher_does_not_matter() -> None:
    target = torch.randn(4, 5, 6)
    prediction = target + 0.5 * torch.randn(4, 5, 6)
    torch.testing.assert_close(
        explained_variance(prediction * 100, target * 100), explained_variance(prediction, target)
    )


def test_metric_equals_the_function_over_all_batches() -> None:
    target = torch.randn(10, 5, 6) + 2
    prediction = target + 0.3 * torch.randn_like(target)
    metric = FeatureAgreement(6)
    metric.update(prediction[:3], target[:3])
    metric.update(prediction[3:], target[3:])
    result = metric.compute()
    torch.testing.assert_close(result["explained_variance"].float(), explained_variance(prediction, target))
    expected = torch.cosine_similarity(prediction, target, dim=-1).mean()
    torch.testing.assert_close(result["cosine"].float(), expected)
