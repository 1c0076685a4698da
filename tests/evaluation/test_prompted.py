"""Validation with models that are known: one that paints what it is told, and a real one beside `SamPredictor`."""

import numpy as np
import pytest
import torch
from conftest import encode
from masked_images import draw_masks, draw_scene, rle

from sami.data.objects import ImageObjects, draw_objects
from sami.data.sources.base import AnnotatedImage
from sami.data.square import FrameSpec
from sami.evaluation import prompted
from sami.evaluation.prompted import KINDS, MaskScores, make_prompts, masks_from_prompts
from sami.models.build import build_sam
from sami.ops.boxes import mask_to_box
from sami.ops.frames import longest_side_frame, stretch_frame
from sami.ops.masks import innermost_pixel, mask_iou
from sami.ops.prompts import BACKGROUND, FOREGROUND
from sami.predict.predictor import SamPredictor

H, W = 26, 32  # of the image; the model sees 32 x 32, with padding below
GRID = longest_side_frame((H, W), 32)


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """masks [1, 3, H, W], noise."""
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    centres, radii = torch.tensor([[8, 8], [20, 12], [16, 24]]), torch.tensor([6, 5, 4])
    discs = torch.stack([(x - cx) ** 2 + (y - cy) ** 2 <= r * r for (cx, cy), r in zip(centres, radii, strict=True)])
    return discs.unsqueeze(0), torch.rand(1, 3, 32, generator=torch.Generator().manual_seed(0))


def box_to_mask(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[..., 4] -> [..., H, W] bool: the pixels whose centre lies inside the box."""
    y, x = (torch.arange(length) + 0.5 for length in size)
    x0, y0, x1, y1 = boxes[..., None].unbind(-2)
    columns, rows = (x >= x0) & (x < x1), (y >= y0) & (y < y1)  # [..., W], [..., H]
    return rows[..., :, None] & columns[..., None, :]


class Painter:
    """Candidates: the box or a square of 7 pixels around each foreground click, shrunk around each background click."""

    def __init__(self) -> None:
        self.questions: list[tuple] = []
        self.painted: list[torch.Tensor] = []

    def __call__(self, prompts, mask_input, *, multimask_output):
        coords, labels = prompts
        self.questions.append((labels, mask_input, multimask_output, coords))
        painted = torch.zeros(1, coords.shape[1], 32, 32)
        y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        for q in range(coords.shape[1]):
            for (cx, cy), label in zip(coords[0, q], labels[0, q], strict=True):
                near = ((x - cx).abs() <= 3) & ((y - cy).abs() <= 3)
                if label in (FOREGROUND, BACKGROUND):
                    painted[0, q][near] = float(label)
            if labels[0, q, 0] == 2:
                painted[0, q] = box_to_mask(coords[0, q].flatten(), (32, 32)).float()
        self.painted.append(painted[:, :, :H].bool())
        K = 3 if multimask_output else 1
        logits = torch.full((*painted.shape[:2], K, 32, 32), -1.0)
        logits[:, :, K // 2] = 2 * painted - 1
        scores = torch.zeros(*painted.shape[:2], K)
        scores[:, :, K // 2] = 1
        return logits, scores


def answers_of(decode: Painter, *, decoder: str) -> dict[str, torch.Tensor]:
    masks, noise = scene()
    return dict(masks_from_prompts(decode, masks, make_prompts(masks, noise), GRID, decoder=decoder))


def test_each_kind_of_prompt_asks_what_it_says() -> None:
    masks, _ = scene()
    decode = Painter()
    answers = answers_of(decode, decoder="sam")
    assert set(answers) == set(KINDS) - {"filled_box"}
    assert torch.equal(answers["box"], box_to_mask(mask_to_box(masks), (H, W)))
    assert [question[0].shape[-1] for question in decode.questions] == [2, 1, 2, 3, 4, 5, 1, 3, 5]
    assert [question[2] for question in decode.questions] == [True, True, *4 * [False], True, False, False]
    assert [question[1] is None for question in decode.questions] == [True, True, *4 * [False], *3 * [True]]
    centre, _ = innermost_pixel(masks)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    square = ((x - centre[..., :1, None]).abs() <= 3) & ((y - centre[..., 1:, None]).abs() <= 3)
    assert torch.equal(answers["click_1"], square)
    for number in range(2, 6):  # each further click is in the error of the answer before
        labels, _, _, coords = decode.questions[number]
        x, y = coords[:, :, -1].long().unbind(-1)
        place, said = (y * W + x).unsqueeze(-1), decode.painted[number - 1]
        truth, said = (m.flatten(2).gather(2, place)[..., 0] for m in (masks, said))
        assert (truth != said).all() and torch.equal(labels[..., -1], torch.where(truth, FOREGROUND, BACKGROUND))


def test_a_model_without_background_clicks_gets_none() -> None:
    decode = Painter()
    answers_of(decode, decoder="efficient_sam")
    assert all(question[2] and question[1] is None for question in decode.questions)
    assert not any((question[0] == BACKGROUND).any() for question in decode.questions)


def some_objects(size: tuple[int, int] = (H, W), fit=longest_side_frame) -> ImageObjects:
    masks = draw_masks(0, 5, height=size[0] - 2, width=size[1])
    masks = np.pad(masks, ((0, 0), (2, 0), (0, 0)))
    image = AnnotatedImage(encode(draw_scene(0, masks)), [rle(mask) for mask in masks])
    frame = FrameSpec(32, 8, "pad" if fit is longest_side_frame else "stretch", 0.9)
    return draw_objects(image, frame, np.random.default_rng(0), num_masks=9)


def scores_of(objects: ImageObjects, decode=None) -> dict[str, float]:
    scores = MaskScores(torch.device("cpu"))
    scores.update(decode or Painter(), objects, decoder="sam")
    assert scores.iou.count == len(objects)
    return {name: float(value) for name, value in scores.compute().items()}


def test_scores_beside_the_trivial_answers() -> None:
    objects = some_objects()
    masks, _ = objects.take(slice(9), objects.frame)
    numbers = scores_of(objects)
    filled = mask_iou(box_to_mask(mask_to_box(masks), (H, W)), masks).mean()
    assert numbers["filled_box"] == pytest.approx(float(filled)) == numbers["box"]
    assert numbers["uniform_disc"] < numbers["click_disc"] < 1
    assert numbers.keys() == {*KINDS, "click_disc", "uniform_disc"}


def test_a_few_objects_at_a_time_give_the_same_numbers(monkeypatch) -> None:
    objects, decode = some_objects(), Painter()
    whole = scores_of(objects)
    monkeypatch.setattr(prompted, "MASK_PIXELS", 2 * 32 * 32)
    assert scores_of(objects, decode) == pytest.approx(whole)
    assert {question[0].shape[1] for question in decode.questions} == {1, 2}


def test_the_answers_without_a_model_do_not_depend_on_the_models_frame() -> None:
    trivial = ("filled_box", "click_disc", "uniform_disc")
    whole, stretched = (scores_of(some_objects((60, 80), fit)) for fit in (longest_side_frame, stretch_frame))
    assert [whole[name] for name in trivial] == [stretched[name] for name in trivial]


def test_large_images_are_compared_on_a_smaller_grid(monkeypatch) -> None:
    objects = some_objects((300, 400))
    whole = scores_of(objects)
    monkeypatch.setattr(prompted, "LONGEST_SIDE", 100)
    smaller = scores_of(objects)
    assert whole != smaller
    for name in ("filled_box", "click_disc"):  # uniform clicks are numbered by pixel: those of another grid are others
        assert smaller[name] == pytest.approx(whole[name], abs=0.1), name


@pytest.mark.parametrize("resize_mode", ["pad", "stretch"])
def test_what_is_measured_is_what_the_predictor_gives(resize_mode) -> None:
    """Box and first click, of an image whose sides no cell divides: the same pixels, to the last one."""
    torch.manual_seed(0)
    model = build_sam("efficient_sam_vitt", decoder="sam", resize_mode=resize_mode, image_size=64)
    drawn = draw_masks(3, 2, height=57, width=83)
    pixels = draw_scene(3, drawn)
    predictor = SamPredictor(model)
    predictor.set_image(pixels)
    masks, noise = torch.from_numpy(drawn).unsqueeze(0), torch.rand(1, 2, 32)

    def decode(prompts, mask_input, *, multimask_output):
        return model.decode(predictor.images([0]), *prompts, mask_input, multimask_output=multimask_output)

    with torch.no_grad():
        prompts_of = make_prompts(masks, noise)
        found = dict(masks_from_prompts(decode, masks, prompts_of, predictor.frames[0], decoder="sam"))
    for number in range(2):
        prompts = {
            "box": {"box": mask_to_box(masks[0, number]).numpy()},
            "click_1": {"point_coords": prompts_of.central[0][0, number].numpy(), "point_labels": [1]},
            "uniform_3": {"point_coords": prompts_of.uniform[0][0, number, :3].numpy(), "point_labels": [1, 1, 1]},
        }
        for kind, prompt in prompts.items():
            several = kind != "uniform_3"
            candidates, ious, _ = predictor.predict(**prompt, multimask_output=several)
            expected = torch.from_numpy(candidates[ious.argmax()])
            assert expected.any() and not expected.all()
            assert (found[kind][0, number] != expected).float().mean() < 1e-3, kind
