import pytest
import torch

from sami.methods.round_gradients import mean_by_iterations


def iterations(leaf: torch.Tensor, weight: torch.Tensor, number: int = 3):
    for index in range(number):
        value = (leaf * weight ** (index + 1)).sum()
        yield torch.stack([value, 2 * value])


def test_equals_the_mean_of_all_iterations():
    source = torch.randn(4, requires_grad=True)
    weight, unused = torch.randn(4, requires_grad=True), torch.randn(2, requires_grad=True)
    expected = torch.stack(list(iterations(source**2, weight)))
    (3 * expected[:, 0].mean()).backward()
    wanted = [tensor.grad.clone() for tensor in (source, weight)]
    source.grad = weight.grad = None
    embedding = source**2
    leaf = embedding.detach().requires_grad_()
    loss, numbers = mean_by_iterations(iterations(leaf, weight), [leaf, weight, unused], [embedding, weight, unused])
    assert weight.grad is None and not numbers.requires_grad
    torch.testing.assert_close(numbers, expected.detach())
    (3 * loss).backward()
    torch.testing.assert_close([source.grad, weight.grad], wanted)
    assert (unused.grad == 0).all()


def test_memory_does_not_grow_with_iterations():
    leaf = torch.randn(1000, requires_grad=True)
    alive, most = [], []

    def watched(number: int):
        for _ in range(number):
            kept = torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(1) or Saved(t), lambda s: s.tensor)
            with kept:
                value = leaf.exp().sum()
            most.append(len(alive))
            yield value[None]

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __del__(self) -> None:
            alive.pop()

    mean_by_iterations(watched(4), [leaf], [leaf])
    assert most == [1, 1, 1, 1] and not alive


def test_a_backward_pass_is_not_in_lower_precision():
    weight, image = torch.randn(64, 64, requires_grad=True), torch.randn(8, 64)

    def in_full():
        with torch.autocast("cpu", enabled=False):
            yield (image @ weight).square().sum()[None]

    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = mean_by_iterations(in_full(), [weight], [weight])
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * image.T @ (image @ weight.detach()))


def test_an_iteration_that_is_not_finite_reaches_the_gradient():
    weight = torch.ones(2, requires_grad=True)
    loss, _ = mean_by_iterations(((weight * factor).sum()[None] for factor in (1.0, torch.inf)), [weight], [weight])
    loss.backward()
    assert not torch.isfinite(loss) and not torch.isfinite(weight.grad).any()
    with pytest.raises(RuntimeError):
        mean_by_iterations([], [weight], [weight])
