import torch

from sami.metrics.knn import KNNAccuracy, leave_one_out_knn


def clusters(per_class: int, *, classes: int = 4, spread: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 16, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return centres[labels] + spread * torch.randn(len(labels), 16, generator=generator), labels


def test_separate_clusters_and_noise() -> None:
    features, labels = clusters(20)
    assert leave_one_out_knn(features, labels, k=5) == 1
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    assert leave_one_out_knn(noise, torch.arange(400) % 4, k=20) < 0.4


def test_an_image_is_not_its_own_neighbour() -> None:
    """With one image per class nothing else can vote for it."""
    assert leave_one_out_knn(torch.eye(6), torch.arange(6), k=3) == 0


def test_against_a_plain_loop() -> None:
    features, labels = clusters(12, spread=1.2)
    normal = torch.nn.functional.normalize((features - features.mean(0)) / features.std(0), dim=1)
    correct = 0
    for i in range(len(features)):
        similarity = [(float(normal[i] @ normal[j]), int(labels[j])) for j in range(len(features)) if j != i]
        votes = torch.zeros(4)
        for value, label in sorted(similarity, reverse=True)[:7]:
            votes[label] += torch.tensor(value / 0.07).exp()
        correct += int(votes.argmax() == labels[i])
    result = leave_one_out_knn(features, labels, k=7)
    assert 0.3 < result < 1
    torch.testing.assert_close(result, torch.tensor(correct / len(features)))


def test_a_loud_channel_does_not_drown_the_others() -> None:
    features, labels = clusters(20)
    features[:, 3] = 1000 * torch.randn(len(features)) + 5000
    assert leave_one_out_knn(features, labels, k=5) > 0.95


def test_unlabelled_images_are_left_out() -> None:
    features, labels = clusters(10)
    metric = KNNAccuracy(k=5)
    metric.update(features, labels)
    metric.update(torch.randn(7, 16), torch.full((7,), -1))
    assert metric.compute() == 1
    metric.reset()
    metric.update(torch.randn(7, 16), torch.full((7,), -1))
    assert metric.compute().isnan()
