"""SAM's mask decoder (arXiv:2304.02643, App. A): image and prompt tokens -> masks and their predicted IoU.

B images   Q prompts per image   b some of the B*Q prompts   T tokens   K masks per prompt   C width
gh gw token grid, N = gh*gw   h w low-res mask, (4*gh, 4*gw)
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d  # pyright: ignore[reportPrivateImportUsage] # timm has no __all__
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sami.models.two_way_transformer import PreparedImage, TwoWayTransformer
from sami.ops.cpu_kernels import linear

NUM_MULTIMASK = 3  # masks 1 to 3 answer an ambiguous prompt, mask 0 any other
CPU_TOKENS = 4096  # image tokens at a time: the 4 MB that they take at 1024 pixels stay in the caches
UPSCALED_TOKENS = 512
GPU_TOKENS = 64 * 4096


class MaskDecoder(nn.Module):
    """SAM's mask decoder, with the parameter names of its released files.

    Args:
        width: C.
        variant: "sam", or "efficient_sam": GELU throughout, a norm over channels and positions in the upscaling, and
            see `TwoWayLayer`.
    """

    def __init__(self, width: int = 256, *, variant: str = "sam") -> None:
        super().__init__()
        self.variant, self.grad_checkpointing = variant, False
        self.transformer = TwoWayTransformer(width=width, variant=variant)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(1 + NUM_MULTIMASK, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            LayerNorm2d(width // 4) if variant == "sam" else nn.GroupNorm(1, width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        activation = nn.ReLU() if variant == "sam" else nn.GELU()
        self.output_hypernetworks_mlps = nn.ModuleList(
            ThreeLayers(width, width // 8, activation) for _ in range(1 + NUM_MULTIMASK)
        )
        self.iou_prediction_head = ThreeLayers(width, 1 + NUM_MULTIMASK, activation)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training decodes each group of prompts again in the backward pass instead of keeping activations."""
        self.grad_checkpointing = enable

    def forward(
        self, image: PreparedImage, sparse: Tensor, token_mask: Tensor, dense: Tensor | None, *, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Masks of B images x Q prompts. The images are never copied for their prompts.

        Args:
            image: the B images, see `Sam.prepare`.
            sparse: [B, Q, S, C] prompt tokens.
            token_mask: [B, Q, S] bool, which of them exist.
            dense: [B, Q, N, C] embeddings of mask prompts, or None.
            multimask_output: K = 3, or K = 1.

        Returns:
            low_res_masks [B, Q, K, h, w] logits, iou_predictions [B, Q, K].
        """
        B, Q = sparse.shape[:2]
        output = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # [1 + 4, C]
        prompt = torch.cat([output.expand(B, Q, -1, -1), sparse], dim=2)  # [B, Q, T, C]
        mask: Tensor | None = F.pad(token_mask, (len(output), 0), value=True)  # [B, Q, T]
        if mask.device.type == "cpu" and mask.all():  # asking a GPU would make the CPU wait for it
            mask = None
        first = 1 if multimask_output else 0
        kept = slice(first, first + (NUM_MULTIMASK if multimask_output else 1))
        tokens = prompt if dense is not None else self.transformer.start(prompt, mask, image)
        masks, ious = [], []
        groups = list(self.groups(B, Q, image))
        for (images, prompts), dense_part in zip(groups, split_groups(dense, groups), strict=True):
            part = images, prompts
            mask_part = None if mask is None else mask[part]
            arguments = (tokens[part], prompt[part], mask_part, dense_part, image, images, kept)
            if self.grad_checkpointing and torch.is_grad_enabled():
                group = checkpoint(self.decode_group, *arguments, use_reentrant=False)
            else:
                group = self.decode_group(*arguments)
            for done, new in zip((masks, ious), group, strict=True):
                done.append(new)
        gh, gw = image.grid_size
        low_res_masks = torch.cat(masks).unflatten(0, (B, Q))
        return low_res_masks.view(B, Q, -1, 4 * gh, 4 * gw), torch.cat(ious).unflatten(0, (B, Q))

    def groups(self, B: int, Q: int, image: PreparedImage) -> Iterator[tuple[slice, slice]]:
        """Prompts to decode at a time, in order: some of one image's, or all those of some images."""
        budget = CPU_TOKENS if image.tokens.device.type == "cpu" else GPU_TOKENS
        size = max(budget // image.tokens.shape[1], 1)
        num_images = max(size // Q, 1)
        for first in range(0, B, num_images):
            for prompt in range(0, Q, size):
                yield slice(first, first + num_images), slice(prompt, prompt + size)

    def decode_group(
        self,
        tokens: Tensor,
        prompt: Tensor,
        token_mask: Tensor | None,
        dense: Tensor | None,
        image: PreparedImage,
        images: slice,
        kept: slice,
    ) -> tuple[Tensor, Tensor]:
        """Part of the images and prompts of `forward` -> masks [b, K, h*w] in image order, IoU [b, K]."""
        if dense is None:
            tokens, image_tokens = self.transformer.finish(tokens, prompt, token_mask, image, images)
        else:
            image_tokens = image.tokens[images].unsqueeze(1) + dense.unflatten(0, prompt.shape[:2])
            image_tokens = image_tokens.flatten(0, 1)  # [b, N, C]
            tokens, prompt = tokens.flatten(0, 1), prompt.flatten(0, 1)
            token_mask = None if token_mask is None else token_mask.flatten(0, 1)
            tokens, image_tokens = self.transformer.attend(
                tokens, image_tokens, prompt, token_mask, image.positions, self.transformer.layers
            )
        iou_predictions = self.iou_prediction_head(tokens[:, 0])[:, kept]
        mask_tokens = tokens[:, 1 : 2 + NUM_MULTIMASK][:, kept].unbind(1)
        networks = list(self.output_hypernetworks_mlps)[kept]
        hyper = torch.stack([net(token) for net, token in zip(networks, mask_tokens, strict=True)], dim=1)
        return to_pixels(self.paint(image_tokens, hyper), image.grid_size), iou_predictions

    def paint(self, image: Tensor, hyper: Tensor) -> Tensor:
        """[b, N, C], [b, K, C/8] -> [b, K, N*16]: each token's 16 pixels, as 2x2 blocks, then within a block.

        `output_upscaling` with channels last: a transposed convolution of stride 2 and width 2 is a matrix product.
        On a CPU some tokens at a time, as their 512 channels of pixels are more than the caches hold.
        """
        first, norm, act, second, last_act = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, nn.GroupNorm | nn.LayerNorm)
        (expand, bias), (expand_again, bias_again) = (doubling(conv, image.dtype) for conv in (first, second))
        if over_all := isinstance(norm, nn.GroupNorm):
            image = linear(image, expand, bias)
            image = F.layer_norm(image, image.shape[1:], eps=norm.eps)
        size = UPSCALED_TOKENS // len(image) if image.device.type == "cpu" else image.shape[1]
        logits = []
        for tokens in image.split(max(size, 1), dim=1):
            if over_all:
                pixels = tokens.unflatten(2, (4, -1)) * norm.weight + norm.bias  # [b, n, 4, C/4]
            else:
                pixels = linear(tokens, expand, bias).unflatten(2, (4, -1))
                pixels = F.layer_norm(pixels, pixels.shape[3:], norm.weight, norm.bias, norm.eps)
            pixels = last_act(linear(act(pixels), expand_again, bias_again))  # [b, n, 4, 4*C/8]
            logits.append(torch.bmm(hyper, pixels.reshape(len(image), -1, hyper.shape[2]).transpose(1, 2)))
        return torch.cat(logits, dim=2)


def split_groups(dense: Tensor | None, groups: list[tuple[slice, slice]]) -> Sequence[Tensor | None]:
    """[B, Q, N, C] -> [b, N, C] of each group. Not slices: the backward pass of each would be as large as the whole."""
    if dense is None:
        return [None] * len(groups)
    B, Q = dense.shape[:2]
    sizes = [len(range(*images.indices(B))) * len(range(*prompts.indices(Q))) for images, prompts in groups]
    return dense.flatten(0, 1).split(sizes)


def doubling(conv: nn.ConvTranspose2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[4*C', C] and [4*C']: what makes the 2x2 pixels of `conv` out of one."""
    assert conv.bias is not None
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 2).to(dtype), conv.bias.repeat(4).to(dtype)


def to_pixels(logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """[b, K, N*16] as `MaskDecoder.paint` gives them -> [b, K, h*w], row by row."""
    if logits.requires_grad or logits.device.type != "cpu":
        return rows_of_blocks(logits, grid_size)
    # torch's copy of pairs takes ten times as long on a CPU; gather's backward pass would lose that again
    order = rows_of_blocks(torch.arange(logits.shape[2]), grid_size)
    return logits.gather(2, order.expand_as(logits))


def rows_of_blocks(logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """[..., N*16] -> [..., h*w]: 2x2 pixels of 2x2 blocks of each token, put where they belong."""
    blocks = logits.unflatten(-1, (*grid_size, 2, 2, 2, 2))
    first = blocks.ndim - 6
    order = (first, first + 2, first + 4, first + 1, first + 3, first + 5)
    return blocks.permute(*range(first), *order).flatten(-6)


class ThreeLayers(nn.Module):
    """Linear layers with an activation between; `layers.0` to `layers.2`."""

    def __init__(self, width: int, output: int, activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, output)])
        self.act = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] -> [..., output]."""
        first, second, last = self.layers
        return last(self.act(second(self.act(first(tokens)))))
