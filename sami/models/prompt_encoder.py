"""SAM's prompt encoder (arXiv:2304.02643, App. A): points, boxes and masks -> embeddings.

B images   Q prompts per image   P points per prompt   S prompt tokens   C width   gh gw token grid, N = gh*gw
"""

import math

import torch
from timm.layers import LayerNorm2d  # pyright: ignore[reportPrivateImportUsage] # timm has no __all__
from torch import Tensor, nn

from sami.ops.prompts import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, PAD_LABEL, TOP_LEFT

PATCH_SIZE = 16  # pixels per image token, in every SAM


class RandomFourier(nn.Module):
    """Positions in the unit square as sines and cosines of random frequencies (arXiv:2006.10739)."""

    positional_encoding_gaussian_matrix: Tensor  # SAM's name

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """[..., 2] (x, y) in [0, 1] -> [..., C]; never in half precision, which would move the points."""
        matrix = self.positional_encoding_gaussian_matrix
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        with torch.autocast(positions.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * positions.to(dtype) - 1) @ matrix.to(dtype))
            return torch.cat([angles.sin(), angles.cos()], dim=-1).to(matrix.dtype)


class PromptEncoder(nn.Module):
    """Prompts as tokens, and mask prompts as additions to the image; the parameter names of SAM's released files.

    SAM's: foreground and background points, boxes and masks, with one padding token beside points that come without a
    box. EfficientSAM's: no background (such a point adds its position, but nothing says what it means) and no masks,
    and prompts are filled up to six tokens with padding at (-1, -1). Released, it drops what exceeds six points; here
    all are used.

    Args:
        width: C.
        variant: "sam" or "efficient_sam".
    """

    def __init__(self, width: int = 256, *, variant: str = "sam") -> None:
        super().__init__()
        self.width, self.variant = width, variant
        self.takes_background = self.takes_masks = variant == "sam"
        self.pe_layer = RandomFourier(width)
        labels = (FOREGROUND, TOP_LEFT, BOTTOM_RIGHT) + ((BACKGROUND,) if self.takes_background else ())
        self.point_embeddings = nn.ModuleDict({str(label): nn.Embedding(1, width) for label in sorted(labels)})
        self.not_a_point_embed = nn.Embedding(1, width)
        if self.takes_masks:
            self.no_mask_embed = nn.Embedding(1, width)
            self.mask_downscaling = nn.Sequential(
                nn.Conv2d(1, 4, 2, stride=2),
                LayerNorm2d(4),
                nn.GELU(),
                nn.Conv2d(4, 16, 2, stride=2),
                LayerNorm2d(16),
                nn.GELU(),
                nn.Conv2d(16, width, 1),
            )

    def grid_positions(self, grid_size: tuple[int, int]) -> Tensor:
        """[N, C]: the position of each image token, row by row."""
        device = self.not_a_point_embed.weight.device
        y, x = ((torch.arange(cells, device=device) + 0.5) / cells for cells in grid_size)
        return self.pe_layer(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))

    def encode_points(
        self, point_coords: Tensor, point_labels: Tensor, grid_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The sparse embeddings, and which of them each prompt really has.

        A prompt's result does not depend on how far others have made it be padded: points of label -1 count for
        nothing, and the padding tokens that the model was trained with are added to each prompt by its own number of
        points.

        Args:
            point_coords: [B, Q, P, 2] (x, y) pixels, model frame.
            point_labels: [B, Q, P], constants of `sami.ops.prompts`.
            grid_size: (gh, gw) of the image.

        Returns:
            sparse_embeddings: [B, Q, S, C].
            token_mask: [B, Q, S] bool.
        """
        P = point_labels.shape[2]
        num_slots = max(P, 6) if self.variant == "efficient_sam" else P + (P > 0)
        labels = nn.functional.pad(point_labels, (0, num_slots - P), value=PAD_LABEL)  # [B, Q, S]
        given = labels != PAD_LABEL
        if self.variant == "efficient_sam":
            wanted = 6 - given.sum(-1, keepdim=True)  # [B, Q, 1] padding tokens
        else:
            wanted = 1 - ((labels == TOP_LEFT) | (labels == BOTTOM_RIGHT)).any(-1, keepdim=True).int()
        token_mask = given | ((~given).cumsum(-1) <= wanted)
        gh, gw = grid_size
        size = torch.tensor([gw * PATCH_SIZE, gh * PATCH_SIZE], device=point_coords.device)
        coords = nn.functional.pad(point_coords, (0, 0, 0, num_slots - P)).float()
        coords = coords.masked_fill(~given.unsqueeze(-1), -1)
        embeddings = self.pe_layer((coords + 0.5) / size)  # [B, Q, S, C]; pixel centres
        if self.variant == "sam":
            embeddings = embeddings * given.unsqueeze(-1)
        kinds = {PAD_LABEL: self.not_a_point_embed, **{int(k): v for k, v in self.point_embeddings.items()}}
        for label, embedding in kinds.items():
            embeddings = embeddings + embedding.weight[0] * (labels == label).unsqueeze(-1)
        return embeddings, token_mask

    def encode_masks(self, mask_input: Tensor) -> Tensor:
        """[B, Q, 4*gh, 4*gw] logits -> dense embeddings [B, Q, N, C]."""
        dense = self.mask_downscaling(mask_input.flatten(0, 1).unsqueeze(1))  # [B*Q, C, gh, gw]
        return dense.flatten(2).transpose(1, 2).unflatten(0, mask_input.shape[:2])
