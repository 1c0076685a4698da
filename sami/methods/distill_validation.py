"""What is reported of a student: its map beside the teacher's, and what the teacher's decoder makes of either.

B images   N tokens   E channels   Q prompts per image   S pixels per side   gh gw token grid   h w low-res masks
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sami.data.objects import ImageObjects
from sami.data.square import content_cells
from sami.methods.mask_validation import MaskScores
from sami.methods.prompting import Decode, decode_with, most_confident
from sami.metrics.agreement import FeatureAgreement
from sami.metrics.mask_iou import PromptedIoU
from sami.models.sam import Sam
from sami.models.two_way_transformer import ImageSide
from sami.ops.masks import mask_iou
from sami.ops.prompts import BOTTOM_RIGHT, FOREGROUND, PADDING, TOP_LEFT, Prompts


class Lesson(NamedTuple):
    """What the teacher says of a batch."""

    target: Tensor  # [B, N, E]
    counted: Tensor  # [B, N] bool, tokens that show a photo
    masks: Tensor | None  # [B, Q, h, w] bool at drawn places, where masks are compared
    found: Tensor | None  # [B, Q] bool, which of them hold anything


class StudentScores:
    """The numbers of one student on one validation set.

    Of the map: `loss`, over the tokens that it is trained on, `cosine` and `explained_variance`, over those that show a
    photo. Of masks: mIoU with the true
    ones by kind of prompt, see `MaskScores`, and with the teacher's own under equal prompts: `teacher_point` at places
    anywhere in the photo (as in arXiv:2306.14289, Table 4), `teacher_box` for the boxes of the true masks.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.loss, self.features = MeanMetric().to(device), FeatureAgreement(width).to(device)
        self.true_masks = MaskScores(device)
        self.teacher_masks = [PromptedIoU([kind]).to(device) for kind in ("teacher_point", "teacher_box")]

    def compare_maps(self, prediction: Tensor, target: Tensor, counted: Tensor, loss: Tensor) -> None:
        """Maps [B, N, E], and which tokens count [B, N]."""
        self.loss.update(loss, weight=len(target))
        self.features.update(prediction[counted].unsqueeze(0), target[counted].unsqueeze(0))

    def compare_masks(self, student: dict[str, Tensor], teacher: dict[str, Tensor], valid: dict[str, Tensor]) -> None:
        """Masks [B, Q, h, w] by kind; those count that the teacher found and `valid` [B, Q] has."""
        for scores in self.teacher_masks:
            (kind,) = scores.kinds
            if kind in student:
                found = valid[kind] & teacher[kind].flatten(2).any(dim=2)
                scores.update({kind: mask_iou(student[kind], teacher[kind])[found]})

    def compute(self) -> dict[str, Tensor]:
        """All numbers by name, over all ranks; those without a photo or mask to tell of are left out."""
        numbers = {"loss": self.loss.compute(), **self.features.compute()}
        for scores in (*self.teacher_masks, self.true_masks):
            numbers |= scores.compute()
        return finite(numbers)


class SetScores:
    """The numbers of all students on one validation set.

    Args:
        students: their names.
        width: E.
        device: where they add up.
        with_teacher: also what the teacher's own maps give, which students may come close to.
    """

    def __init__(self, students: list[str], width: int, device: torch.device, *, with_teacher: bool) -> None:
        self.students = {name: StudentScores(width, device) for name in students}
        self.teacher = MaskScores(device) if with_teacher else None

    def update(
        self,
        students: nn.ModuleDict,
        batch: dict[str, Any],
        lesson: Lesson | None,
        *,
        judge: Sam,
        loss: Callable[[Tensor, Lesson], Tensor],
    ) -> None:
        """Adds a batch of photos; without a lesson only what needs no teacher.

        Args:
            students: segmenters by name.
            batch: of `ImageWithObjects`, normalised, without rows that show nothing.
            judge: the teacher's decoder.
            loss: of a student's map [B, N, E].
        """
        side = judge.image_size
        there = torch.ones_like(batch["place_noise"][..., 0], dtype=torch.bool)  # [B, Q]
        valid = {"teacher_point": there, "teacher_box": batch["object_valid"]}
        if lesson:
            gh = gw = math.isqrt(lesson.target.shape[1])
            seen = judge.prepare(to_map(lesson.target, (gh, gw)))
            teacher_masks = answers_to_all(decode_with(judge, seen), batch, side)
            if self.teacher:
                ask_for_true_masks(self.teacher, judge, seen, batch["objects"])
        for name, scores in self.students.items():
            image_embeddings = students[name].embed(batch["image"])
            seen = students[name].prepare(image_embeddings)
            ask_for_true_masks(scores.true_masks, students[name], seen, batch["objects"])
            if lesson:
                prediction = to_tokens(image_embeddings)
                scores.compare_maps(prediction, lesson.target, lesson.counted, loss(prediction, lesson))
                student_masks = answers_to_all(decode_with(students[name], seen), batch, side)
                scores.compare_masks(student_masks, teacher_masks, valid)

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """Numbers by name, by student, over all ranks; "of_teacher" is the teacher."""
        numbers = {name: scores.compute() for name, scores in self.students.items()}
        return numbers | ({"of_teacher": finite(self.teacher.compute())} if self.teacher else {})


def finite(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without those that had nothing to be a mean of."""
    return {name: value for name, value in numbers.items() if torch.isfinite(value)}


def ask_for_true_masks(scores: MaskScores, model: Sam, seen: ImageSide, objects: list[ImageObjects | None]) -> None:
    """Adds the objects of a batch, photo by photo."""
    for row, own in enumerate(objects):
        if own is not None:
            decode = decode_with(model, seen.take([row]))
            scores.add_photo(decode, own, several_for=model.several_for)


def place_prompts(noise: Tensor, input_size: Tensor) -> Prompts:
    """A click at each place of the photos: noise [B, Q, 2] in [0, 1), input_size [B, 2] (height, width)."""
    coords = noise * input_size.flip(1).unsqueeze(1)  # [B, Q, 2] (x, y)
    return coords.unsqueeze(2), torch.full_like(noise[..., :1], FOREGROUND, dtype=torch.int64)


def answer(decode: Decode, prompts: Prompts, input_size: Tensor, side: int) -> Tensor:
    """bool [B, Q, h, w]: the mask of highest predicted IoU, on the decoder's own grid, nothing in the padding."""
    masks = most_confident(*decode(prompts, None, multimask_output=True)) > 0
    cells = content_cells(input_size, side, tuple(masks.shape[-2:])).unflatten(1, masks.shape[-2:])
    return masks & cells.unsqueeze(1)


def answers_to_all(decode: Decode, batch: dict[str, Any], side: int) -> dict[str, Tensor]:
    """Masks by kind of prompt, see `StudentScores`; boxes where there are masks to take them from."""
    input_size = batch["input_size"]
    found = {"teacher_point": answer(decode, place_prompts(batch["place_noise"], input_size), input_size, side)}
    if batch["object_valid"].any():
        corners = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=batch["object_valid"].device)
        labels = torch.where(batch["object_valid"].unsqueeze(-1), corners, PADDING)  # [B, Q, 2]
        found["teacher_box"] = answer(decode, (batch["box"], labels), input_size, side)
    return found


def to_tokens(image_embeddings: Tensor) -> Tensor:
    """[B, E, gh, gw] -> [B, N, E]."""
    return image_embeddings.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """[B, N, E] -> [B, E, gh, gw]."""
    return tokens.transpose(1, 2).unflatten(2, grid_size)
