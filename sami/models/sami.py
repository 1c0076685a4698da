"""The network of SAMI pretraining.

B images   H W pixels   N tokens   V visible   D encoder width   C decoder width   E target width
"""

from collections.abc import Callable

from torch import Tensor, nn

from sami.models.vit import ViT, init_linears
from sami.ops.masking import MaskSplit


class SAMI(nn.Module):
    """f^h(x) of arXiv:2312.00863, Sec. 3.2: encode visible, decode masked, merge, project.

    Args:
        encoder: the ViT that is kept after pretraining.
        decoder: called as decoder(encoder_width, grid_size), gives `CrossAttentionDecoder` or `SelfAttentionDecoder`.
        target_width: E, the teacher's width.
    """

    def __init__(self, encoder: ViT, decoder: Callable[[int, tuple[int, int]], nn.Module], target_width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder(encoder.embed_dim, encoder.grid_size)
        self.head = nn.Linear(self.decoder.width, target_width)
        init_linears(self.head)

    def forward(self, image: Tensor, split: MaskSplit) -> Tensor:
        """[B, 3, H, W] -> prediction [B, N, E], tokens in image order."""
        visible = self.encoder.encode_visible(image, split.ids_keep)  # [B, 1 + V, D]
        tokens = self.decoder(visible, split)  # [B, N, C]
        return self.head(tokens)
