"""A promptable segmenter: image encoder, prompt encoder and mask decoder (arXiv:2304.02643, Sec. 3).

B images   H W model-input pixels   gh gw token grid, N = gh*gw   h w low-res mask, (4*gh, 4*gw)
Q prompts (objects) per image   P points per prompt   K candidate masks per prompt
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from sami.models.mask_decoder import MaskDecoder
from sami.models.prompt_encoder import PATCH_SIZE, PromptEncoder
from sami.models.two_way_transformer import ImageSide
from sami.ops.prompts import SEVERAL_FOR, Prompts, draw_prompts

PREPROCESS = ("pad", "squash")
DECODERS = ("sam", "sam_drawn_prompts", "efficient_sam")


class Sam(nn.Module):
    """Image in, embedding out; embedding and prompts in, masks out.

    Args:
        image_encoder: [B, 3, H, W] -> [B, 256, gh, gw].
        name: of the model, see `sami.models.build.build_sam`.
        image_size: pixels per side of the square that it was made for.
        preprocess: how a photo gets there: "pad", longest side and zeros to the right and below (SAM), or "squash",
            both sides on their own (EfficientSAM).
        decoder: "sam"; or "sam_drawn_prompts", SAM's with the same weights, whose prompts are drawn as well (see
            `draw_prompts`; this project's own, for training from random weights): the drawing is the mask prompt where
            there is no other, and is added to the logits, so that what is learned is how an object differs from its
            box; or "efficient_sam", which knows neither background points nor mask prompts.

        several_for: which prompts the model learned to answer with three candidates, see `wants_several`. None: as
            `decoder` was released.

    Raises:
        ValueError: unknown `preprocess`, `decoder` or `several_for`, or `image_size` is not a multiple of 16.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        *,
        name: str,
        image_size: int = 1024,
        preprocess: str,
        decoder: str,
        several_for: str | None = None,
    ) -> None:
        super().__init__()
        if preprocess not in PREPROCESS:
            raise ValueError(f"preprocess={preprocess!r}: choose one of {', '.join(PREPROCESS)}")
        if decoder not in DECODERS:
            raise ValueError(f"decoder={decoder!r}: choose one of {', '.join(DECODERS)}")
        several_for = several_for or ("any" if decoder == "efficient_sam" else "lone")
        if several_for not in SEVERAL_FOR:
            raise ValueError(f"several_for={several_for!r}: choose one of {', '.join(SEVERAL_FOR)}")
        if image_size <= 0 or image_size % PATCH_SIZE:
            raise ValueError(f"image_size={image_size}: give a multiple of {PATCH_SIZE} pixels")
        self.name, self.image_size, self.preprocess, self.decoder = name, image_size, preprocess, decoder
        self.several_for = several_for
        self.draws_prompts = decoder == "sam_drawn_prompts"
        variant = "sam" if self.draws_prompts else decoder
        self.image_encoder = image_encoder
        self.prompt_encoder = PromptEncoder(variant=variant)
        self.mask_decoder = MaskDecoder(variant=variant)
        if self.draws_prompts:
            self.mask_decoder.start_at_nothing()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_decoder.iou_token.weight.device

    def recompute_activations(self, on: bool = True) -> None:
        """Whether training computes activations a second time in the backward pass instead of keeping them."""
        self.mask_decoder.checkpoint = on
        if hasattr(self.image_encoder, "set_grad_checkpointing"):  # timm's
            self.image_encoder.set_grad_checkpointing(on)
        else:
            self.image_encoder.checkpoint = on

    def embed(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], normalised with ImageNet's mean and deviation -> image_embeddings [B, 256, gh, gw]."""
        return self.image_encoder(image)

    def prepare(self, image_embeddings: Tensor) -> ImageSide:
        """[B, 256, gh, gw] -> what `decode` needs of the images, to be kept where they are prompted more than once."""
        grid_size, encoder = tuple(image_embeddings.shape[2:]), self.prompt_encoder
        dtype, device = image_embeddings.dtype, image_embeddings.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # here once instead of in every product
        return ImageSide(
            image_embeddings.flatten(2).transpose(1, 2).to(dtype).contiguous(),
            encoder.grid_positions(grid_size).to(dtype),
            grid_size=grid_size,
            unprompted=encoder.no_mask_embed.weight[0] if encoder.takes_masks else None,
        )

    def decode(
        self,
        image_embeddings: Tensor | ImageSide,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        *,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Masks for B images x Q prompts of up to P points, equal to those of one call per prompt.

        Args:
            image_embeddings: [B, 256, gh, gw], or what `prepare` made of it.
            point_coords: [B, Q, P, 2] (x, y) pixels, model frame. A box is two points.
            point_labels: [B, Q, P]: 1 foreground, 0 background, 2 and 3 a box's top-left and bottom-right, -1 none.
                Shorter prompts are filled with -1. A prompt of -1 alone gives masks that mean nothing.
            mask_input: [B, Q, 4*gh, 4*gw] logits of an earlier call, or None.
            multimask_output: K = 3 masks for ambiguous prompts, or K = 1.

        Returns:
            low_res_masks: [B, Q, K, 4*gh, 4*gw] logits.
            iou_predictions: [B, Q, K].

        Raises:
            ValueError: a mask prompt for a model that takes none, or shapes that do not belong together.
        """
        side = self.prepare(image_embeddings) if isinstance(image_embeddings, Tensor) else image_embeddings
        self.check_shapes(side, point_coords, point_labels, mask_input)
        sparse, visible = self.prompt_encoder.encode_points(point_coords, point_labels, side.grid_size)
        dense = None if mask_input is None else self.prompt_encoder.encode_masks(mask_input)
        if not self.draws_prompts:
            return self.mask_decoder(side, sparse, visible, dense, multimask_output=multimask_output)
        gh, gw = side.grid_size
        drawn, given, seen = draw_prompts(point_coords, point_labels, size=(4 * gh, 4 * gw), cell=PATCH_SIZE / 4)
        if dense is None:
            dense = self.prompt_encoder.encode_drawings(drawn, given)
        low_res_masks, ious = self.mask_decoder(side, sparse, visible, dense, multimask_output=multimask_output)
        return low_res_masks * seen[..., None, None, None] + drawn.unsqueeze(2), ious

    def check_shapes(
        self, side: ImageSide, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor | None
    ) -> None:
        """See `decode`."""
        shape = tuple(point_labels.shape)
        if len(shape) != 3 or tuple(point_coords.shape) != (*shape, 2) or shape[0] != len(side.image):
            raise ValueError(
                f"point_coords {list(point_coords.shape)} and point_labels {list(shape)} do not fit "
                f"{len(side.image)} images: give [B, Q, P, 2] and [B, Q, P]"
            )
        if mask_input is not None and not self.prompt_encoder.takes_masks:
            raise ValueError(f"{self.name} takes no mask prompts: leave mask_input out, or use decoder=sam")
        expected = (*shape[:2], *(4 * cells for cells in side.grid_size))
        if mask_input is not None and tuple(mask_input.shape) != expected:
            raise ValueError(f"mask_input is {list(mask_input.shape)}, needed {list(expected)}")


Candidates = tuple[Tensor, Tensor]  # low_res_masks [B, Q, K, h, w] logits, iou_predictions [B, Q, K]


class Decode(Protocol):
    """A model that has seen the images: prompts in the model frame, and a mask to start from, to candidate masks."""

    def __call__(self, prompts: Prompts, mask_input: Tensor | None, *, multimask_output: bool) -> Candidates:
        """`mask_input` is [B, Q, h, w] logits. K is 3 with `multimask_output` and 1 without."""


def decode_with(model: Sam, image_embeddings: Tensor | ImageSide) -> Decode:
    """A model that has the embeddings [B, 256, gh, gw] of some images, or what `Sam.prepare` made of them.

    Given embeddings, each call prepares them anew, and shares no graph with another.
    """

    def decode(prompts: Prompts, mask_input: Tensor | None, *, multimask_output: bool) -> Candidates:
        return model.decode(image_embeddings, *prompts, mask_input, multimask_output=multimask_output)

    return decode


def most_confident(low_res_masks: Tensor, iou_predictions: Tensor) -> Tensor:
    """[B, Q, K, h, w], [B, Q, K] -> [B, Q, h, w]: the logits of highest predicted IoU, without gradient."""
    best = iou_predictions.detach().argmax(dim=-1)[..., None, None, None]
    return low_res_masks.detach().take_along_dim(best, dim=2)[:, :, 0]
