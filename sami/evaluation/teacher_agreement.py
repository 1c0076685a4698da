"""What is reported of a student: its map beside the teacher's, and what the teacher's decoder makes of either.

B images   N tokens   E channels   Q prompts per image   S pixels per side   gh gw token grid   h w low-res masks
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from sami.data.objects import ImageObjects
from sami.data.square import content_cells
from sami.evaluation.prompted import MaskScores
from sami.metrics.agreement import FeatureAgreement
from sami.metrics.mask_iou import PromptedIoU
from sami.models.sam import Decode, Sam, decode_with, most_confident
from sami.models.two_way_transformer import PreparedImage
from sami.ops.masks import enlarge, mask_iou
from sami.ops.pca import pca_colors, tokens_to_pixels
from sami.ops.prompts import BOTTOM_RIGHT, FOREGROUND, PAD_LABEL, TOP_LEFT, Prompts

Masks = dict[str, Tensor]  # bool [B, Q, h, w] by kind of prompt


class TeacherOutput(NamedTuple):
    """What the teacher says of a batch."""

    target: Tensor  # [B, N, E]
    token_valid: Tensor  # [B, N] bool, tokens that show an image
    masks: Tensor | None = None  # [B, Q, h, w] bool at drawn places, where masks are compared
    mask_valid: Tensor | None = None  # [B, Q] bool, which of them hold anything


class StudentScores:
    """The numbers of one student on one validation set.

    Of the map: `loss`, over the tokens that it is trained on, `cosine` and `explained_variance`, over those that show
    an image. Of masks: mIoU with the true ones by kind of prompt, see `MaskScores`, and with the teacher's own under
    equal prompts: `teacher_point` at places anywhere in the image (as in arXiv:2306.14289, Table 4), `teacher_box` for
    the boxes of the true masks.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.loss, self.features = MeanMetric().to(device), FeatureAgreement(width).to(device)
        self.true_masks = MaskScores(device)
        self.teacher_masks = {kind: PromptedIoU([kind]).to(device) for kind in ("teacher_point", "teacher_box")}

    def update(self, prediction: Tensor, masks: Masks, loss: Tensor, teacher: TeacherOutput, found: Masks) -> None:
        """Adds a map [B, N, E] and masks, beside those `found` in the teacher's: of them alone that hold anything."""
        self.loss.update(loss, weight=len(prediction))
        self.features.update(*(tokens[teacher.token_valid].unsqueeze(0) for tokens in (prediction, teacher.target)))
        for kind, wanted in found.items():
            ious = mask_iou(masks[kind], wanted)[wanted.flatten(2).any(dim=2)]
            self.teacher_masks[kind].update({kind: ious})

    def compute(self) -> dict[str, Tensor]:
        """All numbers by name, over all ranks; NaN without an image or mask to tell of."""
        numbers = {"loss": self.loss.compute(), **self.features.compute()}
        for scores in (*self.teacher_masks.values(), self.true_masks):
            numbers |= scores.compute()
        return numbers


class TeacherAgreement:
    """The numbers of all students on one validation set.

    Args:
        students: their names.
        width: E.
        device: where they add up.
        with_teacher: also what the teacher's own maps give, which students may come close to.
    """

    def __init__(self, students: Sequence[str], width: int, device: torch.device, *, with_teacher: bool) -> None:
        self.students = {name: StudentScores(width, device) for name in students}
        self.teacher = MaskScores(device) if with_teacher else None

    def update(
        self,
        students: Mapping[str, Sam],
        batch: dict[str, Any],
        teacher_output: TeacherOutput | None,
        *,
        teacher_decoder: Sam,
        loss: Callable[[Tensor, TeacherOutput], Tensor],
    ) -> None:
        """Adds a batch of images; without the teacher's output only what needs no teacher.

        Args:
            students: segmenters by name.
            batch: of `EvalWholeViews`, normalised, without rows that show nothing.
            teacher_decoder: what makes masks of the teacher's maps.
            loss: of a student's map [B, N, E].
        """
        image_size, objects, teacher_masks = teacher_decoder.image_size, batch["objects"], {}
        if teacher_output:
            gh = gw = math.isqrt(teacher_output.target.shape[1])
            seen = teacher_decoder.prepare(to_map(teacher_output.target, (gh, gw)))
            teacher_masks = masks_by_prompt(decode_with(teacher_decoder, seen), batch, image_size)
            if self.teacher:
                compare_with_true_masks(self.teacher, teacher_decoder, seen, objects)
        for name, scores in self.students.items():
            image_embeddings = students[name].embed(batch["image"])
            seen = students[name].prepare(image_embeddings)
            compare_with_true_masks(scores.true_masks, students[name], seen, objects)
            if teacher_output:
                prediction = to_tokens(image_embeddings)
                masks = masks_by_prompt(decode_with(students[name], seen), batch, image_size)
                scores.update(prediction, masks, loss(prediction, teacher_output), teacher_output, teacher_masks)

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """Numbers by name, by student, over all ranks, less those that had nothing to be a mean of."""
        found = {name: scores.compute() for name, scores in self.students.items()}
        found |= {"of_teacher": self.teacher.compute()} if self.teacher else {}
        return {who: {name: n for name, n in numbers.items() if n.isfinite()} for who, numbers in found.items()}


def compare_with_true_masks(
    scores: MaskScores, model: Sam, seen: PreparedImage, objects: list[ImageObjects | None]
) -> None:
    """Adds the objects of a batch, image by image."""
    for row, own in enumerate(objects):
        if own is not None:
            scores.update(decode_with(model, seen.take([row])), own, decoder=model.decoder)


def place_prompts(noise: Tensor, input_size: Tensor) -> Prompts:
    """A click at each place of the images: noise [B, Q, 2] in [0, 1), input_size [B, 2] (height, width)."""
    coords = noise * input_size.flip(1).unsqueeze(1)  # [B, Q, 2] (x, y)
    return coords.unsqueeze(2), torch.full_like(noise[..., :1], FOREGROUND, dtype=torch.int64)


def predict_masks(decode: Decode, prompts: Prompts, input_size: Tensor, image_size: int) -> Tensor:
    """bool [B, Q, h, w]: the mask of highest predicted IoU, on the decoder's own grid, nothing in the padding."""
    masks = most_confident(*decode(prompts, None, multimask_output=True)) > 0
    h, w = masks.shape[-2:]
    return masks & content_cells(input_size, image_size, (h, w)).unflatten(1, (h, w)).unsqueeze(1)


def masks_by_prompt(decode: Decode, batch: dict[str, Any], image_size: int) -> Masks:
    """Masks by kind of prompt, see `StudentScores`; boxes where there are true masks, for others nothing."""
    valid, input_size = batch["object_valid"], batch["input_size"]
    points = place_prompts(batch["place_noise"], input_size)
    found = {"teacher_point": predict_masks(decode, points, input_size, image_size)}
    if valid.any():
        corners = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=valid.device)
        boxes = batch["box"], torch.where(valid.unsqueeze(-1), corners, PAD_LABEL)  # labels [B, Q, 2]
        found["teacher_box"] = predict_masks(decode, boxes, input_size, image_size) & valid[..., None, None]
    return found


def to_tokens(image_embeddings: Tensor) -> Tensor:
    """[B, E, gh, gw] -> [B, N, E]."""
    return image_embeddings.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """[B, N, E] -> [B, E, gh, gw]."""
    return tokens.transpose(1, 2).unflatten(2, grid_size)


def draw_map(model: Sam, tokens: Tensor, target: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A map [B, N, E] to look at, and what a decoder finds in it, on the CPU.

    Returns:
        uint8 [B, 3, S, S], in the colours of the target's basis.
        bool [B, Q, S, S], masks from the boxes of the true ones, or from points where there are none.
    """
    gh = gw = math.isqrt(tokens.shape[1])
    size = model.image_size, model.image_size
    found = masks_by_prompt(decode_with(model, to_map(tokens, (gh, gw))), batch, model.image_size)
    masks = found.get("teacher_box", found["teacher_point"])  # [B, Q, h, w]
    picture = tokens_to_pixels(pca_colors(target, tokens)[1], (gh, gw), size)
    return picture.cpu(), (enlarge(masks.float(), size) > 0.5).cpu()
