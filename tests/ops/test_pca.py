import pytest
import torch

from sami.ops.pca import fit_pca, pca_colors, tokens_to_pixels


def draw_tokens(spread: torch.Tensor, *, num_tokens: int = 200) -> torch.Tensor:
    """[T, E] float32 whose components have about this spread, far from zero."""
    generator = torch.Generator().manual_seed(0)
    E = len(spread)
    rotation, _ = torch.linalg.qr(torch.randn(E, E, generator=generator, dtype=torch.float64))
    tokens = torch.randn(num_tokens, E, generator=generator, dtype=torch.float64) * spread
    return (tokens @ rotation.T + torch.linspace(-5, 9, E)).float()


@pytest.mark.parametrize("k", [1, 4, 12])
def test_no_other_components_keep_more(k: int) -> None:
    tokens = draw_tokens(torch.logspace(0, -2, 12))
    mean, components = fit_pca(tokens, k)
    assert mean.shape == (12,) and components.shape == (12, k)
    assert mean.dtype == components.dtype == torch.float32
    torch.testing.assert_close(mean, tokens.mean(0))
    torch.testing.assert_close(components.T @ components, torch.eye(k), rtol=0, atol=1e-6)
    coordinates = (tokens - mean) @ components
    lost = tokens - (coordinates @ components.T + mean)
    spectrum = torch.linalg.svdvals((tokens - tokens.mean(0)).double()).float()
    torch.testing.assert_close(coordinates.norm(dim=0), spectrum[:k], rtol=1e-4, atol=0)  # the largest variance first
    torch.testing.assert_close(lost.norm(), spectrum[k:].norm(), rtol=1e-4, atol=1e-4)


def test_tokens_of_few_dimensions_come_back_whole() -> None:
    tokens = draw_tokens(torch.tensor([3.0, 0, 1, 0, 0, 2]))
    mean, components = fit_pca(tokens, 3)
    torch.testing.assert_close((tokens - mean) @ components @ components.T + mean, tokens, rtol=0, atol=1e-5)


def test_small_variances_are_told_apart() -> None:
    """In 32 bits they would drown: variances are the squares of spreads."""
    tokens = draw_tokens(torch.logspace(0, -4, 6), num_tokens=2000)
    _, components = fit_pca(tokens, 6)
    _, _, vectors = torch.linalg.svd((tokens.double() - tokens.double().mean(0)), full_matrices=False)
    torch.testing.assert_close((vectors.float() @ components).abs(), torch.eye(6), rtol=0, atol=1e-4)


def test_the_sign_is_fixed() -> None:
    tokens = draw_tokens(torch.linspace(1, 2, 12))
    mean, components = fit_pca(tokens, 12)
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()
    for same in (tokens.flip(0), 2 * mean - tokens):
        torch.testing.assert_close(fit_pca(same, 12)[1], components, rtol=0, atol=1e-4)


@pytest.mark.parametrize("k", [0, -1, 13])
def test_there_are_as_many_components_as_channels(k: int) -> None:
    with pytest.raises(ValueError, match=rf"channels={k}: targets have 12, keep 1 to 12"):
        fit_pca(torch.randn(20, 12), k)


def test_equal_features_have_equal_colours() -> None:
    target = torch.randn(2, 16, 8) @ torch.randn(8, 8)
    same, copy = pca_colors(target, target.clone())
    assert same.shape == (2, 16, 3) and same.dtype == torch.uint8 and torch.equal(same, copy)


def test_one_basis_for_both() -> None:
    """A student that says the mean everywhere has one colour; with a basis of its own it would look as rich."""
    target = torch.randn(2, 16, 8)
    _, student = pca_colors(target, target.mean(dim=(0, 1)).expand_as(target))
    assert (student == student[0, 0]).all()


def test_first_component_is_red() -> None:
    target = torch.zeros(1, 4, 5)
    target[0, :, 3] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    colours, _ = pca_colors(target, target)
    red = colours[0, :, 0].int()
    assert (red.diff() > 50).all()


def test_tokens_become_blocks_of_pixels() -> None:
    """Token 1 of a 2x2 grid is the upper right quarter."""
    tokens = torch.zeros(1, 4, 3, dtype=torch.uint8)
    tokens[0, 1] = 255
    pixels = tokens_to_pixels(tokens, (2, 2), (8, 8))
    assert pixels.shape == (1, 3, 8, 8)
    assert (pixels[:, :, :4, 4:] == 255).all() and pixels.sum() == 255 * 3 * 16
