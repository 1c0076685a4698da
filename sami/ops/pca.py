"""Principal components.

T tokens   E channels   k components
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
