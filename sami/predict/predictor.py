"""SamPredictor: masks from points, boxes and masks, with the interface of segment-anything.

B images   Q prompts (objects) per image   P points per prompt   K candidate masks   Ho Wo original pixels   h w low-res
mask, a quarter of the model's square
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sami.models.sam import Sam
from sami.models.two_way_transformer import PreparedImage
from sami.ops.frames import ImageFrame
from sami.predict.check_prompts import Prompt, each_object, read_prompt, stack_prompts
from sami.predict.image import rgb_pixels
from sami.predict.transform import ResizeImage

ImageLike = np.ndarray | Image.Image
Result = tuple[np.ndarray, np.ndarray, np.ndarray]  # masks, iou_predictions, low_res_masks
IMAGES_AT_ONCE = 4  # through the image encoder
MASK_PIXELS = 2**26  # of full-size logits at a time


class SamPredictor:
    """segment-anything's interface to any `Sam`: one image is embedded once and then prompted as often as wanted.

    All coordinates are (x, y) pixels of the image as it was given; sizes are (H, W).
    """

    def __init__(self, model: Sam) -> None:
        self.model = model
        self.transform = ResizeImage(model.image_size, model.resize_mode)
        self.reset_image()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def reset_image(self) -> None:
        """Forgets the images."""
        self.frames: list[ImageFrame] = []
        self.features: Tensor | None = None  # [B, 256, gh, gw]
        self.prepared: PreparedImage | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether there is something to prompt."""
        return self.features is not None

    def set_image(self, image: ImageLike, image_format: str = "RGB") -> None:
        """Embeds an image for `predict`, uint8 [Ho, Wo, 3] or what else `rgb_pixels` takes."""
        self.set_image_batch([image], image_format)

    @torch.no_grad()
    def set_image_batch(self, image_list: Sequence[ImageLike], image_format: str = "RGB") -> None:
        """Embeds images of any sizes for `predict_batch`; see `set_image`."""
        if len(image_list) == 0:
            raise ValueError("no images: give at least one")
        images = [torch.tensor(rgb_pixels(image, image_format=image_format)) for image in image_list]
        resized = [self.transform.apply_image_torch(pixels.permute(2, 0, 1).unsqueeze(0)) for pixels in images]
        frames = [self.transform.frame(pixels.shape[:2]) for pixels in images]
        self.embed(torch.cat([self.model.preprocess(image) for image in resized]), frames)

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: Sequence[int]) -> None:
        """Embeds an image that is resized already.

        Args:
            transformed_image: [1, 3, H, W] in 0 to 255, as `transform.apply_image` gives it; RGB.
            original_image_size: (Ho, Wo) of the image.
        """
        frame = self.transform.frame(original_image_size)
        if tuple(transformed_image.shape[1:]) != (3, *frame.input_size):
            needed = f"give {[1, 3, *frame.input_size]}, see transform.apply_image"
            raise ValueError(f"transformed_image is {list(transformed_image.shape)}: {needed}")
        self.embed(self.model.preprocess(transformed_image), [frame] * len(transformed_image))

    def embed(self, squares: Tensor, frames: list[ImageFrame]) -> None:
        """[B, 3, S, S] normalised, and where the images lie in them."""
        self.reset_image()
        self.features = torch.cat([self.model.embed(group) for group in squares.split(IMAGES_AT_ONCE)])
        self.frames = frames

    @property
    def original_size(self) -> tuple[int, int]:
        """(Ho, Wo) of the first image."""
        self.get_image_embedding()
        return self.frames[0].original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the first image in the model's square."""
        self.get_image_embedding()
        return self.frames[0].input_size

    def get_image_embedding(self) -> Tensor:
        """[B, 256, gh, gw]; ValueError where no image is set."""
        if self.features is None:
            raise ValueError("no image is set: call set_image or set_image_batch first")
        return self.features

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Result:
        """Masks of one object in the image of `set_image`.

        Args:
            point_coords: [P, 2] (x, y) pixels.
            point_labels: [P], 1 foreground, 0 background, -1 none.
            box: [4] xyxy pixels.
            mask_input: [1, h, w] logits, one of the low_res_masks of an earlier call.
            multimask_output: K = 3 masks, for prompts that may mean several things, or K = 1.
            return_logits: masks as float logits instead of bool.

        Returns:
            masks: [K, Ho, Wo] bool.
            iou_predictions: [K] float32, the model's estimate of each mask's quality.
            low_res_masks: [K, h, w] float32 logits.

        Raises:
            ValueError: no image was set, or several, or see `read_prompt`.
        """
        self.get_image_embedding()
        if len(self.frames) > 1:
            raise ValueError(f"predict is for one image, and {len(self.frames)} are set: use predict_batch")
        prompt = self.read_prompt(0, point_coords, point_labels, box, mask_input)
        results = self.predict_prompts([[prompt]], multimask_output=multimask_output, return_logits=return_logits)
        masks, iou_predictions, low_res_masks = results[0]
        return masks[0], iou_predictions[0], low_res_masks[0]

    def predict_batch(
        self,
        point_coords_batch: Sequence | None = None,
        point_labels_batch: Sequence | None = None,
        box_batch: Sequence | None = None,
        mask_input_batch: Sequence | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Masks of many objects in each image of `set_image_batch`, in one call.

        Each argument has one entry per image, None or with one entry per object: points [Q, P, 2] or a list of Q
        arrays [P, 2] with different P, labels likewise, boxes [Q, 4], mask prompts [Q, 1, h, w]. Images may have
        different Q, none at all included.

        Returns:
            masks, iou_predictions and low_res_masks as of `predict`, for each image with a first dimension Q.

        Raises:
            ValueError: no image was set, the arguments have different lengths, or see `read_prompt`.
        """
        self.get_image_embedding()
        asked = each_object(len(self.frames), point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        prompts = [[self.read_prompt(image, *given) for given in objects] for image, objects in enumerate(asked)]
        results = self.predict_prompts(prompts, multimask_output=multimask_output, return_logits=return_logits)
        masks, iou_predictions, low_res_masks = zip(*results, strict=True)
        return list(masks), list(iou_predictions), list(low_res_masks)

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`predict` for Q objects of the first image at once, in tensors and in the model's frame, unchecked.

        Arguments as of `Sam.decode_prompts`; `transform` brings points and boxes into the model's frame.

        Returns:
            masks [Q, K, Ho, Wo] bool or logits, iou_predictions [Q, K], low_res_masks [Q, K, h, w].
        """
        self.get_image_embedding()
        low_res_masks, iou_predictions = self.model.decode_prompts(
            self.images([0]), point_coords, point_labels, boxes, mask_input, multimask_output=multimask_output
        )
        masks = self.to_original(low_res_masks, self.frames[0], return_logits=return_logits)
        return masks, iou_predictions, low_res_masks

    def images(self, rows: list[int]) -> PreparedImage:
        """What the decoder needs of some of the images."""
        prepared = self.prepared or self.model.prepare(self.get_image_embedding())
        self.prepared = prepared
        return prepared if len(rows) == len(self.frames) else prepared.take(rows)

    def read_prompt(self, image: int, *given: np.ndarray | None) -> Prompt:
        """See `sami.predict.check_prompts.read_prompt`."""
        return read_prompt(self.frames[image], *given, takes_background=self.model.prompt_encoder.takes_background)

    @torch.no_grad()
    def predict_prompts(
        self, prompts: Sequence[Sequence[Prompt]], *, multimask_output: bool, return_logits: bool
    ) -> list[Result]:
        """The result of each image; those with as many prompts as another are decoded with it."""
        results: dict[int, Result] = {}
        groups = defaultdict(list)
        for image, of_image in enumerate(prompts):
            groups[len(of_image), any(prompt.mask is not None for prompt in of_image)].append(image)
        for rows in groups.values():
            low_res_masks, iou_predictions = self.model.decode(
                self.images(rows),
                *stack_prompts([prompts[row] for row in rows], self.device),
                multimask_output=multimask_output,
            )
            for row, low_res, ious in zip(rows, low_res_masks.float(), iou_predictions.float(), strict=True):
                masks = self.to_original(low_res, self.frames[row], return_logits=return_logits)
                results[row] = masks.cpu().numpy(), ious.cpu().numpy(), low_res.cpu().numpy()
        return [results[image] for image in range(len(prompts))]

    def to_original(self, low_res_masks: Tensor, frame: ImageFrame, *, return_logits: bool) -> Tensor:
        """[Q, K, h, w] logits -> [Q, K, Ho, Wo] bool or logits."""
        size = max(frame.masks_at_once(MASK_PIXELS) // low_res_masks.shape[1], 1)
        parts = (frame.masks_to_original(part) for part in low_res_masks.split(size))
        return torch.cat([part if return_logits else part > self.model.mask_threshold for part in parts])
