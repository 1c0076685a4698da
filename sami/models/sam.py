"""Sam, a promptable segmenter: image encoder, prompt encoder and mask decoder (arXiv:2304.02643, Sec. 3).

B images   H W model-input pixels   gh gw token grid, N = gh*gw   h w low-res mask, (4*gh, 4*gw)
Q prompts (objects) per image   P points per prompt   K candidate masks per prompt
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from sami.models.mask_decoder import MaskDecoder
from sami.models.prompt_encoder import PATCH_SIZE, PromptEncoder
from sami.models.two_way_transformer import PreparedImage
from sami.ops.frames import ImageFrame, frame_of
from sami.ops.prompts import Prompts, join_box

RESIZE_MODES = ("pad", "stretch")
DECODERS = ("sam", "efficient_sam")


class Sam(nn.Module):
    """Images to embeddings, embeddings and prompts to masks, with the interface of segment-anything's `Sam`.

    Args:
        image_encoder: [B, 3, H, W] -> [B, 256, gh, gw], an `ImageEncoder` or timm's samvit.
        name: of the model, see `sami.models.build.build_sam`.
        image_size: pixels per side of the square that it was made for.
        resize_mode: how an image gets there: "pad", longest side and zeros to the right and below (SAM), or "stretch",
            both sides resized on their own (EfficientSAM).
        decoder: "sam", or "efficient_sam", which knows neither background points nor mask prompts.

    Raises:
        ValueError: unknown `resize_mode` or `decoder`, or `image_size` is not a multiple of 16.
    """

    mask_threshold: float = 0.0  # of logits
    image_format: str = "RGB"
    image_encoder: Any  # a Module, which pyright believes to have tensors and modules only

    def __init__(
        self,
        image_encoder: nn.Module,
        *,
        name: str,
        image_size: int = 1024,
        resize_mode: str,
        decoder: str,
    ) -> None:
        super().__init__()
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode={resize_mode!r}: choose one of {', '.join(RESIZE_MODES)}")
        if decoder not in DECODERS:
            raise ValueError(f"decoder={decoder!r}: choose one of {', '.join(DECODERS)}")
        if image_size <= 0 or image_size % PATCH_SIZE:
            raise ValueError(f"image_size={image_size}: give a multiple of {PATCH_SIZE} pixels")
        self.name, self.image_size, self.resize_mode, self.decoder = name, image_size, resize_mode, decoder
        self.image_encoder = image_encoder
        self.image_encoder.img_size = image_size  # code for segment-anything asks here
        self.prompt_encoder = PromptEncoder(variant=decoder)
        self.mask_decoder = MaskDecoder(variant=decoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_decoder.iou_token.weight.device

    @property
    def pixel_mean(self) -> Tensor:
        """[3, 1, 1]: ImageNet's, of pixels in 0 to 255."""
        return 255 * torch.tensor(IMAGENET_DEFAULT_MEAN, device=self.device).view(-1, 1, 1)

    @property
    def pixel_std(self) -> Tensor:
        """[3, 1, 1], see `pixel_mean`."""
        return 255 * torch.tensor(IMAGENET_DEFAULT_STD, device=self.device).view(-1, 1, 1)

    @torch.no_grad()
    def forward(self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Masks of many images with prompts of their own, in one call.

        Args:
            batched_input: for each image
                image: [3, H, W] in 0 to 255, resized as `ResizeImage.apply_image` does.
                original_size: (Ho, Wo) of the image.
                point_coords, point_labels, boxes, mask_inputs: see `decode_prompts`; what is not there is left out.
            multimask_output: see `decode`.

        Returns: for each image masks [Q, K, Ho, Wo] bool, iou_predictions [Q, K], low_res_logits [Q, K, 4*gh, 4*gw].

        Raises:
            ValueError: there is no image, one is not resized to the model's square, or see `decode_prompts`.
        """
        if len(batched_input) == 0:
            raise ValueError("no image: give one entry for each, with image, original_size and prompts")
        frames, outputs = [], []
        for given in batched_input:
            frames.append(frame_of(tuple(given["original_size"]), self.image_size, resize_mode=self.resize_mode))
            if (shape := list(given["image"].shape)) != (expected := [3, *frames[-1].input_size]):
                said = f"image is {shape}, expected {expected} for original_size {list(frames[-1].original_size)}"
                raise ValueError(f"{said}: use ResizeLongestSide or predictor.transform.apply_image")
        images = torch.cat([self.preprocess(given["image"][None]) for given in batched_input])
        prepared = self.prepare(self.embed(images))
        for row, (given, frame) in enumerate(zip(batched_input, frames, strict=True)):
            prompts = (given.get(name) for name in ("point_coords", "point_labels", "boxes", "mask_inputs"))
            low_res, ious = self.decode_prompts(prepared.take([row]), *prompts, multimask_output=multimask_output)
            masks = frame.masks_to_original(low_res)
            outputs.append({"masks": masks > self.mask_threshold, "iou_predictions": ious, "low_res_logits": low_res})
        return outputs

    def preprocess(self, x: Tensor) -> Tensor:
        """[..., 3, H, W] in 0 to 255, resized -> [..., 3, S, S]: normalised, then zeros to the right and below."""
        missing_rows, missing_columns = (self.image_size - side for side in x.shape[-2:])
        x = (x.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std
        return nn.functional.pad(x, (0, missing_columns, 0, missing_rows))

    def postprocess_masks(self, masks: Tensor, input_size: Sequence[int], original_size: Sequence[int]) -> Tensor:
        """[Q, K, h, w] logits, (H, W), (Ho, Wo) -> [Q, K, Ho, Wo] logits, see `ImageFrame.masks_to_original`."""
        (H, W), (Ho, Wo), stretch = input_size, original_size, self.resize_mode == "stretch"
        return ImageFrame((Ho, Wo), (H, W), self.image_size, stretch=stretch).masks_to_original(masks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes activations a second time in the backward pass instead of keeping them."""
        self.image_encoder.set_grad_checkpointing(enable)
        self.mask_decoder.set_grad_checkpointing(enable)

    def embed(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], normalised with ImageNet's mean and deviation -> image_embeddings [B, 256, gh, gw]."""
        return self.image_encoder(image)

    def prepare(self, image_embeddings: Tensor) -> PreparedImage:
        """[B, 256, gh, gw] -> what `decode` needs of the images, to be kept where they are prompted more than once."""
        (gh, gw), encoder = image_embeddings.shape[2:], self.prompt_encoder
        dtype, device = image_embeddings.dtype, image_embeddings.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # here once instead of in every product
        return PreparedImage(
            image_embeddings.flatten(2).transpose(1, 2).to(dtype).contiguous(),
            encoder.grid_positions((gh, gw)).to(dtype),
            grid_size=(gh, gw),
            no_mask_embed=encoder.no_mask_embed.weight[0] if encoder.takes_masks else None,
        )

    def decode(
        self,
        image_embeddings: Tensor | PreparedImage,
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
            low_res_masks [B, Q, K, 4*gh, 4*gw], logits, and iou_predictions [B, Q, K].

        Raises:
            ValueError: a mask prompt for a model that takes none, or shapes that do not belong together.
        """
        image = self.prepare(image_embeddings) if isinstance(image_embeddings, Tensor) else image_embeddings
        self.check_shapes(image, point_coords, point_labels, mask_input)
        gh, gw = image.grid_size
        if point_labels.shape[1] == 0:  # a detector that found nothing
            shape = (len(image.tokens), 0, 3 if multimask_output else 1)
            return image.tokens.new_zeros(*shape, 4 * gh, 4 * gw), image.tokens.new_zeros(shape)
        sparse, token_mask = self.prompt_encoder.encode_points(point_coords, point_labels, image.grid_size)
        dense = None if mask_input is None else self.prompt_encoder.encode_masks(mask_input)
        return self.mask_decoder(image, sparse, token_mask, dense, multimask_output=multimask_output)

    def decode_prompts(
        self,
        image_embeddings: Tensor | PreparedImage,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None,
        mask_input: Tensor | None,
        *,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """`decode` for Q prompts of one image as segment-anything has them, which may be on another device.

        Args:
            image_embeddings: see `decode`, of one image.
            point_coords: [Q, P, 2] (x, y) pixels, model frame.
            point_labels: [Q, P]: 1 foreground, 0 background, -1 none.
            boxes: [Q, 4] xyxy pixels, model frame.
            mask_input: [Q, 1, 4*gh, 4*gw] logits of an earlier call.
            multimask_output: see `decode`.

        Returns:
            float low_res_masks [Q, K, 4*gh, 4*gw], logits, and iou_predictions [Q, K].

        Raises:
            ValueError: there is no prompt, or see `decode`.
        """
        prompts = join_box(point_coords, point_labels, boxes)
        if prompts is None:
            if mask_input is None:
                raise ValueError("no prompt: give point_coords and point_labels, boxes, or mask_input")
            prompts = torch.zeros(len(mask_input), 0, 2), torch.zeros(len(mask_input), 0, dtype=torch.long)
        coords, labels = (part.unsqueeze(0).to(self.device) for part in prompts)
        masks = None if mask_input is None else mask_input.transpose(0, 1).to(self.device)
        low_res_masks, ious = self.decode(image_embeddings, coords, labels, masks, multimask_output=multimask_output)
        return low_res_masks[0].float(), ious[0].float()

    def check_shapes(
        self, image: PreparedImage, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor | None
    ) -> None:
        """See `decode`."""
        shape = tuple(point_labels.shape)
        if len(shape) != 3 or tuple(point_coords.shape) != (*shape, 2) or shape[0] != len(image.tokens):
            raise ValueError(
                f"point_coords {list(point_coords.shape)} and point_labels {list(shape)} do not fit "
                f"{len(image.tokens)} images: give [B, Q, P, 2] and [B, Q, P]"
            )
        if mask_input is not None and not self.prompt_encoder.takes_masks:
            raise ValueError(f"{self.name} takes no mask prompts: leave mask_input out, or use decoder=sam")
        expected = (*shape[:2], *(4 * cells for cells in image.grid_size))
        if mask_input is not None and tuple(mask_input.shape) != expected:
            raise ValueError(f"mask_input is {list(mask_input.shape)}, needed {list(expected)}")


Candidates = tuple[Tensor, Tensor]  # low_res_masks [B, Q, K, h, w] logits, iou_predictions [B, Q, K]


class Decode(Protocol):
    """A model that has seen the images: prompts in the model frame, and a mask to start from, to candidate masks."""

    def __call__(self, prompts: Prompts, mask_input: Tensor | None, *, multimask_output: bool) -> Candidates:
        """`mask_input` is [B, Q, h, w] logits. K is 3 with `multimask_output` and 1 without."""
        ...


def decode_with(model: Sam, image_embeddings: Tensor | PreparedImage) -> Decode:
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
