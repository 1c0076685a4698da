import numpy as np
import pytest
import torch
from conftest import draw_image
from PIL import Image

import sami
from sami.models.build import build_sam
from sami.models.sam import Sam
from sami.predict import predictor as module
from sami.predict.predictor import SamPredictor

IMAGE = draw_image(0, height=60, width=80)
OTHER = draw_image(1, height=50, width=30)


@pytest.fixture(scope="module", params=[("pad", "sam"), ("stretch", "efficient_sam")], ids=["pad", "stretch"])
def model(request) -> Sam:
    resize_mode, decoder = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_sam("efficient_sam_vitt", decoder=decoder, resize_mode=resize_mode, image_size=128)


@pytest.fixture
def predictor(model) -> SamPredictor:
    predictor = SamPredictor(model)
    predictor.set_image(IMAGE)
    return predictor


def draw_discs(self, image_embeddings, point_coords, point_labels, mask_input=None, *, multimask_output):
    """A decoder that sees: a disc of 16 pixels, model frame, around the first point, K times."""
    grid = 4 * torch.arange(32) + 2.0
    x, y = point_coords[:, :, 0].unbind(-1)
    distance = (grid - x[..., None, None]) ** 2 + (grid[:, None] - y[..., None, None]) ** 2
    K = 3 if multimask_output else 1
    return (16 - distance.sqrt()).unsqueeze(2).repeat(1, 1, K, 1, 1), torch.ones(*point_labels.shape[:2], K)


def test_public_names():
    assert sami.SamPredictor is SamPredictor and sami.build_sam is build_sam
    with pytest.raises(AttributeError, match="no attribute 'SamEverything'"):
        _ = sami.SamEverything


@pytest.mark.parametrize("multimask_output", [True, False])
def test_shapes_and_types(predictor, multimask_output):
    K = 3 if multimask_output else 1
    options = {
        "point_coords": np.array([[40, 30]]),
        "point_labels": np.array([1]),
        "multimask_output": multimask_output,
    }
    masks, ious, low_res = predictor.predict(**options)
    assert (masks.shape, masks.dtype) == ((K, 60, 80), bool)
    assert (ious.shape, ious.dtype) == ((K,), np.float32)
    assert (low_res.shape, low_res.dtype) == ((K, 32, 32), np.float32)
    logits, _, _ = predictor.predict(**options, return_logits=True)
    assert logits.dtype == np.float32 and ((logits > 0) == masks).all()


@pytest.mark.parametrize("point", [(10, 50), (70, 12), (40, 30)])
def test_masks_lie_where_the_point_is(predictor, model, monkeypatch, point):
    monkeypatch.setattr(Sam, "decode", draw_discs)
    masks, _, _ = predictor.predict(np.array([point]), np.array([1]))
    x = np.nonzero(masks[0])[1]
    height = 60 if model.resize_mode == "stretch" else 80  # of the image that 128 model pixels show
    inside = (
        np.hypot((np.arange(80) + 0.5 - point[0]) / 80, ((np.arange(60) + 0.5 - point[1]) / height)[:, None])
    ) < 1 / 8
    assert (masks[0] & inside).sum() / (masks[0] | inside).sum() > 0.85
    assert masks[0][point[1], point[0]] and abs(x.min() + x.max() + 1 - 2 * point[0]) <= 12


def test_a_batch_equals_single_images(model):
    """Two images of different sizes, with two objects and one, and one without any."""
    predictor = SamPredictor(model)
    predictor.set_image_batch([IMAGE, OTHER, IMAGE])
    masks, ious, low_res = predictor.predict_batch(
        point_coords_batch=[[np.array([[40, 30], [10, 10]]), np.array([[60, 20]])], [None], None],
        point_labels_batch=[[np.array([1, 1]), np.array([1])], [None], None],
        box_batch=[[None, np.array([50, 10, 70, 40])], [[3, 4, 20, 30]], None],
    )
    assert [m.shape for m in masks] == [(2, 3, 60, 80), (1, 3, 50, 30), (0, 3, 60, 80)]
    assert [i.shape for i in ious] == [(2, 3), (1, 3), (0, 3)] and low_res[2].shape == (0, 3, 32, 32)
    single = SamPredictor(model)
    single.set_image(IMAGE)
    expected = [
        single.predict(np.array([[40, 30], [10, 10]]), np.array([1, 1])),
        single.predict(np.array([[60, 20]]), np.array([1]), np.array([50, 10, 70, 40])),
    ]
    single.set_image(OTHER)
    expected.append(single.predict(box=np.array([3, 4, 20, 30])))
    for (image, row), want in zip(((0, 0), (0, 1), (1, 0)), expected, strict=True):
        found = masks[image][row], ious[image][row], low_res[image][row]
        np.testing.assert_allclose(found[2], want[2], atol=1e-4)
        np.testing.assert_allclose(found[1], want[1], atol=1e-4)
        assert (found[0] != want[0]).mean() < 1e-3


def test_images_go_through_the_encoder_in_groups(model, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 2)
    predictor = SamPredictor(model)
    predictor.set_image_batch([IMAGE, OTHER, IMAGE])
    assert predictor.get_image_embedding().shape == (3, 256, 8, 8)
    torch.testing.assert_close(predictor.features[0], predictor.features[2], rtol=0, atol=1e-4)


def test_large_results_are_enlarged_in_parts(predictor, monkeypatch):
    options = {"box_batch": [[[10, 10, 40, 40]] * 5]}
    expected = predictor.predict_batch(**options)
    monkeypatch.setattr(module, "MASK_PIXELS", 2 * 3 * 128 * 128)
    assert (predictor.predict_batch(**options)[0][0] == expected[0][0]).all()


def test_predict_torch_takes_the_models_frame(predictor):
    points = predictor.frames[0].to_model(torch.tensor([[[40.0, 30.0]], [[10, 20]]]))
    boxes = predictor.frames[0].to_model(torch.tensor([[[30.0, 20], [50, 40]], [[5, 5], [30, 30]]])).flatten(1)
    masks, ious, low_res = predictor.predict_torch(points, torch.ones(2, 1), boxes, multimask_output=False)
    assert masks.shape == (2, 1, 60, 80) and ious.shape == (2, 1)
    expected = predictor.predict(np.array([[10, 20]]), np.array([1]), np.array([5, 5, 30, 30]), multimask_output=False)
    np.testing.assert_allclose(low_res[1].numpy(), expected[2], atol=1e-4)
    with pytest.raises(ValueError, match="no prompt"):
        predictor.predict_torch(None, None)


def test_mask_prompts_change_the_answer(predictor, model):
    point = {"point_coords": np.array([[40, 30]]), "point_labels": np.array([1]), "multimask_output": False}
    _, _, low_res = predictor.predict(**point)
    if not model.prompt_encoder.takes_masks:
        with pytest.raises(ValueError, match="takes no mask prompts"):
            predictor.predict(**point, mask_input=low_res)
        return
    _, _, again = predictor.predict(**point, mask_input=low_res)
    _, _, alone = predictor.predict(mask_input=low_res, multimask_output=False)
    batch = predictor.predict_batch(mask_input_batch=[[low_res, -low_res]], multimask_output=False)
    assert np.abs(again - low_res).max() > 1e-3
    np.testing.assert_allclose(batch[2][0][0], alone, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 3000)])
def test_images_of_odd_sizes(model, size):
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((*size, 3), np.uint8))
    masks, _, _ = predictor.predict(np.array([[0, 0]]), np.array([1]))
    assert masks.shape == (3, *size)


def test_twenty_thousand_pixels_wide(model):
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((400, 20_000, 3), np.uint8))
    masks, _, _ = predictor.predict(np.array([[19_999, 399]]), np.array([1]), multimask_output=False)
    assert masks.shape == (1, 400, 20_000)


def test_channels_in_the_other_order(model):
    predictor, other = SamPredictor(model), SamPredictor(model)
    predictor.set_image(IMAGE)
    other.set_image(IMAGE[..., ::-1], image_format="BGR")
    torch.testing.assert_close(other.features, predictor.features)
    other.set_image(Image.fromarray(IMAGE))
    torch.testing.assert_close(other.features, predictor.features)


def test_nothing_set_and_lengths_that_differ(model, predictor):
    empty = SamPredictor(model)
    for call in (empty.predict, empty.predict_batch, empty.get_image_embedding):
        with pytest.raises(ValueError, match="no image is set"):
            call()
    assert not empty.is_image_set and predictor.is_image_set
    predictor.reset_image()
    with pytest.raises(ValueError, match="no image is set"):
        predictor.predict(box=np.array([0, 0, 5, 5]))
    with pytest.raises(ValueError, match="no images"):
        predictor.set_image_batch([])
    predictor.set_image(IMAGE)
    with pytest.raises(ValueError, match="box_batch has 2 entries for 1 images"):
        predictor.predict_batch(box_batch=[None, None])
    with pytest.raises(ValueError, match=r"image 0: .* are for \[1, 2\] objects"):
        predictor.predict_batch([[[[1, 1]]]], [[[1]]], [[[0, 0, 5, 5], [0, 0, 6, 6]]])


def test_one_image_and_several(model):
    predictor = SamPredictor(model)
    predictor.set_image_batch([IMAGE, OTHER])
    with pytest.raises(ValueError, match="predict is for one image, and 2 are set: use predict_batch"):
        predictor.predict(box=np.array([0, 0, 5, 5]))
    if model.prompt_encoder.takes_masks:
        low_res = np.zeros((1, 32, 32), np.float32)
        with pytest.raises(ValueError, match="mask prompts for some objects"):
            predictor.predict_batch([[[[1, 1]]] * 2, None], [[[1]] * 2, None], None, [[low_res, None], None])


def test_background_points_need_a_model_that_knows_them(predictor, model):
    prompt = {"point_coords": np.array([[40, 30], [5, 5]]), "point_labels": np.array([1, 0])}
    if model.prompt_encoder.takes_background:
        assert predictor.predict(**prompt)[0].shape == (3, 60, 80)
    else:
        with pytest.raises(ValueError, match="without background points"):
            predictor.predict(**prompt)


def test_padding_counts_for_nothing(predictor):
    found = predictor.predict(np.array([[40, 30], [-1, -1], [5, 5]]), np.array([1, -1, -1]))
    expected = predictor.predict(np.array([[40, 30]]), np.array([1]))
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)


def test_an_image_that_is_resized_already(predictor, model):
    other = SamPredictor(model)
    pixels = torch.as_tensor(other.transform.apply_image(IMAGE)).permute(2, 0, 1).unsqueeze(0)
    other.set_torch_image(pixels, IMAGE.shape[:2])
    torch.testing.assert_close(other.features, predictor.features)
    assert other.original_size == (60, 80) and other.frames == predictor.frames
    assert other.input_size == ((128, 128) if model.resize_mode == "stretch" else (96, 128))
    point, box = torch.tensor([[[40.0, 30.0]]]), torch.tensor([30.0, 20, 50, 40])
    asked = other.transform.apply_coords_torch(point, (60, 80)), torch.ones(1, 1)
    found = other.predict_torch(*asked, other.transform.apply_boxes_torch(box, (60, 80)))
    expected = predictor.predict(point[0].numpy(), [1], box.numpy())
    np.testing.assert_allclose(found[2][0].numpy(), expected[2], atol=1e-4)
    with pytest.raises(ValueError, match=r"transformed_image is \[1, 3, 60, 80\]: give \[1, 3, (96|128), 128\]"):
        other.set_torch_image(torch.zeros(1, 3, 60, 80), (60, 80))


def test_no_boxes_no_masks(predictor):
    masks, ious, low_res = predictor.predict_torch(None, None, torch.zeros(0, 4))
    assert (masks.shape, masks.dtype, ious.shape) == ((0, 3, 60, 80), torch.bool, (0, 3))
    assert low_res.shape == (0, 3, 32, 32)
    masks, ious, low_res = predictor.predict_batch(box_batch=[np.zeros((0, 4))], multimask_output=False)
    assert (masks[0].shape, masks[0].dtype, ious[0].shape) == ((0, 1, 60, 80), bool, (0, 1))
