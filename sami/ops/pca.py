"""Principal component analysis (PCA) of features, and features as RGB colours.

T tokens   E channels   k components   B images   N tokens   gh gw token grid   H W pixels
"""

import torch
from torch import Tensor


def fit_pca(tokens: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """[T, E] -> mean [E] and components [E, k], orthonormal columns, the largest variance first; float32.

    (tokens - mean) @ components are the coordinates, coordinates @ components.T + mean the best approximation.
    Each component's sign is fixed (its largest entry is positive): the same tokens give the same components.

    Raises:
        ValueError: more components than channels, or fewer than one.
    """
    if not 0 < num_components <= tokens.shape[1]:
        raise ValueError(f"channels={num_components}: targets have {tokens.shape[1]}, keep 1 to {tokens.shape[1]}")
    tokens = tokens.double()
    mean = tokens.mean(dim=0)
    _, vectors = torch.linalg.eigh((tokens - mean).T @ (tokens - mean))  # ascending
    components = vectors[:, -num_components:].flip(1)
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))  # [1, k]
    return mean.float(), (components * largest.sign()).float()


def pca_colors(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, E] twice -> uint8 [B, N, 3] twice: the first three principal components of the target, as RGB.

    Both are projected on the target's components and scaled by the target's range, so equal colours are equal
    features, and a student that predicts the mean is grey. With a basis for each, any student would look fine.
    """
    mean, basis = (part.double() for part in fit_pca(target.flatten(0, 1), 3))  # [E], [E, 3]
    projected = (target.flatten(0, 1).double() - mean) @ basis  # [B*N, 3]
    low, high = projected.quantile(0.01, dim=0), projected.quantile(0.99, dim=0)

    def colors(features: Tensor) -> Tensor:
        share = ((features.double() - mean) @ basis - low) / (high - low).clamp_min(1e-12)
        return share.clamp(0, 1).mul(255).round().byte()

    return colors(target), colors(prediction)


def tokens_to_pixels(tokens: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[B, N, C] -> [B, C, H, W], each token a block of pixels."""
    (gh, gw), (H, W) = grid_size, size
    grid = tokens.transpose(1, 2).unflatten(2, (gh, gw))
    return grid.repeat_interleave(H // gh, 2).repeat_interleave(W // gw, 3)
