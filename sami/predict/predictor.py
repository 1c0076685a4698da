"""Point at something in a photo and get its mask.

B images   Q prompts (objects) per image   P points per prompt   K candidate masks   Ho Wo original pixels   h w low-res
mask, a quarter of the model's square
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sami.data.transforms import normalize
from sami.models.sam import Sam
from sami.models.two_way_transformer import ImageSide
from sami.ops.frames import ImageFrame, longest_side_frame, squash_frame
from sami.ops.prompts import BOTTOM_RIGHT, TOP_LEFT
from sami.predict.photo import to_rgb
from sami.predict.prompts import Prompt, read_prompt, stack_prompts

Photo = np.ndarray | Image.Image
Result = tuple[np.ndarray, np.ndarray, np.ndarray]  # masks, iou_predictions, low_res_masks
IMAGES_AT_ONCE = 4  # through the image encoder
MASK_PIXELS = 2**26  # of full-size logits at a time


class SamPredictor:
    """segment-anything's interface to any `Sam`: one image is embedded once and then prompted as often as wanted.

    All coordinates are (x, y) pixels of the photo as it was given; sizes are (H, W).
    """

    mask_threshold = 0.0

    def __init__(self, model: Sam) -> None:
        self.model = model
        self.reset_image()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def reset_image(self) -> None:
        """Forgets the images."""
        self.frames: list[ImageFrame] = []
        self.features: Tensor | None = None  # [B, 256, gh, gw]
        self.side: ImageSide | None = None

    @property
    def is_image_set(self) -> bool:
        """Whether there is something to prompt."""
        return self.features is not None

    def set_image(self, image: Photo, image_format: str = "RGB") -> None:
        """Embeds a photo for `predict`.

        Args:
            image: uint8 [Ho, Wo, 3]. Grey, RGBA and 16-bit arrays and Pillow's images are converted.
            image_format: order of the channels, "RGB" or "BGR".

        Raises:
            ValueError: see `to_rgb`.
        """
        self.set_image_batch([image], image_format)

    @torch.no_grad()
    def set_image_batch(self, image_list: Sequence[Photo], image_format: str = "RGB") -> None:
        """Embeds photos of any sizes for `predict_batch`.

        Raises:
            ValueError: see `to_rgb`, or there is none.
        """
        if len(image_list) == 0:
            raise ValueError("no images: give at least one")
        self.reset_image()
        fit = longest_side_frame if self.model.preprocess == "pad" else squash_frame
        frames, squares = [], []
        for photo in image_list:
            pixels = to_rgb(photo, image_format=image_format)
            frames.append(fit(pixels.shape[:2], self.model.image_size))
            image = frames[-1].resize(torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0))  # no GPU smooths uint8
            squares.append(frames[-1].pad(normalize(image.to(self.device))))
        groups = torch.cat(squares).split(IMAGES_AT_ONCE)
        self.features = torch.cat([self.model.embed(group) for group in groups])
        self.side = self.model.prepare(self.features)
        self.frames = frames

    def get_image_embedding(self) -> Tensor:
        """[B, 256, gh, gw].

        Raises:
            ValueError: no image was set.
        """
        self.require_image()
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
            point_labels: [P], 1 foreground, 0 background.
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
        self.require_image()
        if len(self.frames) > 1:
            raise ValueError(f"predict is for one image, and {len(self.frames)} are set: use predict_batch")
        prompt = self.read_prompt(0, point_coords, point_labels, box, mask_input)
        (result,) = self.decode([[prompt]], multimask_output=multimask_output, return_logits=return_logits)
        return tuple(part[0] for part in result)

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
            masks: per image [Q, K, Ho, Wo] bool, or logits.
            iou_predictions: per image [Q, K].
            low_res_masks: per image [Q, K, h, w].

        Raises:
            ValueError: no image was set, the arguments have different lengths, or see `read_prompt`.
        """
        self.require_image()
        batches = (point_coords_batch, point_labels_batch, box_batch, mask_input_batch)
        for name, batch in zip(("point_coords", "point_labels", "box", "mask_input"), batches, strict=True):
            if batch is not None and len(batch) != len(self.frames):
                raise ValueError(f"{name}_batch has {len(batch)} entries for {len(self.frames)} images")
        prompts = []
        for image in range(len(self.frames)):
            given = [None if batch is None else batch[image] for batch in batches]
            counts = {len(entry) for entry in given if entry is not None}
            if len(counts) > 1:
                raise ValueError(f"image {image}: points, labels, boxes and masks are for {sorted(counts)} objects")
            rows = ([None if entry is None else entry[row] for entry in given] for row in range(max(counts, default=0)))
            prompts.append([self.read_prompt(image, *row) for row in rows])
        results = self.decode(prompts, multimask_output=multimask_output, return_logits=return_logits)
        return tuple(list(part) for part in zip(*results, strict=True))

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

        Args:
            point_coords: [Q, P, 2] (x, y) pixels, model frame: see `frames[0].to_model`.
            point_labels: [Q, P] 1, 0, or -1 for none.
            boxes: [Q, 4] xyxy pixels, model frame.
            mask_input: [Q, 1, h, w] logits.

        Returns:
            [Q, K, Ho, Wo] bool or logits, [Q, K], [Q, K, h, w].

        Raises:
            ValueError: no image was set, or there is no prompt.
        """
        self.require_image()
        points, labels = [], []
        if point_coords is not None:
            points, labels = [point_coords], [point_labels]
        if boxes is not None:
            points.append(boxes.unflatten(-1, (2, 2)))
            labels.append(torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=boxes.device).expand(len(boxes), -1))
        if not points and mask_input is None:
            raise ValueError("no prompt: give point_coords and point_labels, boxes, or mask_input")
        Q = len((points or [mask_input])[0])
        coords = torch.cat(points, dim=1) if points else torch.zeros(Q, 0, 2)
        kinds = torch.cat(labels, dim=1) if labels else torch.zeros(Q, 0).long()
        low_res_masks, iou_predictions = self.model.decode(
            self.side if len(self.frames) == 1 else self.side.take([0]),
            coords.unsqueeze(0).to(self.device),
            kinds.unsqueeze(0).to(self.device),
            None if mask_input is None else mask_input.transpose(0, 1).to(self.device),
            multimask_output=multimask_output,
        )
        low_res_masks, iou_predictions = low_res_masks[0].float(), iou_predictions[0].float()
        masks = self.to_original(low_res_masks, self.frames[0], return_logits=return_logits)
        return masks, iou_predictions, low_res_masks

    def require_image(self) -> None:
        """See `predict`."""
        if not self.is_image_set:
            raise ValueError("no image is set: call set_image or set_image_batch first")

    def read_prompt(self, image: int, *given: np.ndarray | None) -> Prompt:
        """See `sami.predict.prompts.read_prompt`."""
        return read_prompt(self.frames[image], *given, takes_background=self.model.prompt_encoder.takes_background)

    @torch.no_grad()
    def decode(
        self, prompts: Sequence[Sequence[Prompt]], *, multimask_output: bool, return_logits: bool
    ) -> list[Result]:
        """The result of each image; those with as many prompts as another are decoded with it."""
        K, h = (3 if multimask_output else 1), self.model.image_size // 4
        shapes = ((K, *frame.original_size) for frame in self.frames)
        kinds = (np.float32 if return_logits else bool, np.float32, np.float32)
        results = [
            tuple(np.zeros((0, *size), kind) for size, kind in zip((shape, (K,), (K, h, h)), kinds, strict=True))
            for shape in shapes
        ]
        groups = defaultdict(list)
        for image, of_image in enumerate(prompts):
            if of_image:
                groups[len(of_image), of_image[0].mask is not None].append(image)
        for rows in groups.values():
            low_res_masks, iou_predictions = self.model.decode(
                self.side if len(rows) == len(self.frames) else self.side.take(rows),
                *stack_prompts([prompts[row] for row in rows], self.device),
                multimask_output=multimask_output,
            )
            for row, low_res, ious in zip(rows, low_res_masks.float(), iou_predictions.float(), strict=True):
                masks = self.to_original(low_res, self.frames[row], return_logits=return_logits)
                results[row] = tuple(part.cpu().numpy() for part in (masks, ious, low_res))
        return results

    def to_original(self, low_res_masks: Tensor, frame: ImageFrame, *, return_logits: bool) -> Tensor:
        """[Q, K, h, w] logits -> [Q, K, Ho, Wo] bool or logits."""
        size = max(frame.masks_at_once(MASK_PIXELS) // low_res_masks.shape[1], 1)
        parts = (frame.masks_to_original(part) for part in low_res_masks.split(size))
        return torch.cat([part if return_logits else part > self.mask_threshold for part in parts])
