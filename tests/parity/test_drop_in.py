"""segment-anything's own idioms (its README and notebooks), run with it and with ours on the same weights."""

from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segment_anything
import timm
import torch
from golden.seeded import seeded_array, seeded_image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

import sami
from sami.models.sam import Sam
from sami.models.weight_names import to_ours
from sami.models.weights import load_strictly
from sami.predict.transform import ResizeImage

SIDE = 256  # pixels of the model's square
IMAGE, OTHER = seeded_image("drop-in-0", 150, 200), seeded_image("drop-in-1", 120, 90)
BOXES = torch.tensor([[20.0, 30, 120, 110], [60, 10, 190, 140], [5, 5, 50, 60]])
NORM = partial(nn.LayerNorm, eps=1e-6)


def small_encoders() -> tuple[nn.Module, nn.Module]:
    """segment-anything's image encoder and timm's, of two blocks: SAM's own take ten seconds for an image."""
    size = {"img_size": SIDE, "embed_dim": 64, "depth": 2, "num_heads": 2}
    theirs = ImageEncoderViT(
        **size, norm_layer=NORM, use_rel_pos=True, rel_pos_zero_init=False, window_size=14, global_attn_indexes=(1,)
    )
    options = {"num_classes": 0, "global_pool": "", "norm_layer": NORM, "global_attn_indexes": (1,)}
    return theirs, timm.create_model("samvit_base_patch16", **size, **options)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """segment-anything's `Sam` and ours, with the same weights."""
    encoder, own_encoder = small_encoders()
    theirs = segment_anything.modeling.Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(256, (SIDE // 16, SIDE // 16), (SIDE, SIDE), 16),
        mask_decoder=MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    ).eval()
    weights = {key: torch.from_numpy(seeded_array(key, value.shape)) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    ours = Sam(own_encoder, name="small", image_size=SIDE, resize_mode="pad", decoder="sam").eval()
    load_strictly(ours, to_ours(weights), source="segment-anything")
    return {"theirs": theirs, "ours": ours}


@pytest.fixture(scope="module")
def predictors(models) -> SimpleNamespace:
    theirs, ours = segment_anything.SamPredictor(models["theirs"]), sami.SamPredictor(models["ours"])
    for predictor in (theirs, ours):  # the same pixels: Pillow's and torch's resize differ by 1 in one value of 400
        pixels = torch.as_tensor(theirs.transform.apply_image(IMAGE)).permute(2, 0, 1)[None]
        predictor.set_torch_image(pixels, IMAGE.shape[:2])
    return SimpleNamespace(theirs=theirs, ours=ours)


def assert_same(found: Any, expected: Any) -> None:
    """Types, shapes and values; masks may differ in a pixel whose logit is almost 0."""
    assert type(found) is type(expected) and found.shape == expected.shape and found.dtype == expected.dtype
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    if found.dtype == torch.bool:
        assert 0.01 < expected.float().mean() < 0.99 and (found != expected).float().mean() < 1e-3
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def compare(predictors: SimpleNamespace, idiom: Any) -> None:
    for found, expected in zip(idiom(predictors.ours), idiom(predictors.theirs), strict=True):
        assert_same(found, expected)


def points(predictor: Any) -> Any:
    return predictor.predict(
        point_coords=np.array([[100, 75], [30, 20]]), point_labels=np.array([1, 0]), multimask_output=True
    )


def box_and_point(predictor: Any) -> Any:
    return predictor.predict(
        point_coords=np.array([[57, 63]]),
        point_labels=np.array([0]),
        box=np.array([20, 30, 120, 110]),
        multimask_output=False,
    )


def one_box(predictor: Any) -> Any:
    return predictor.predict(
        point_coords=None, point_labels=None, box=np.array([20, 30, 120, 110])[None, :], multimask_output=False
    )


def logits(predictor: Any) -> Any:
    return predictor.predict(point_coords=np.array([[100, 75]]), point_labels=np.array([1]), return_logits=True)


def masks_fed_back(predictor: Any) -> Any:
    input_point, input_label = np.array([[100, 75]]), np.array([1])
    _, scores, logits = predictor.predict(point_coords=input_point, point_labels=input_label, multimask_output=True)
    mask_input = logits[np.argmax(scores), :, :]
    return predictor.predict(
        point_coords=np.array([[100, 75], [112, 62]]),
        point_labels=np.array([1, 1]),
        mask_input=mask_input[None, :, :],
        multimask_output=False,
    )


def boxes_of_a_detector(predictor: Any) -> Any:
    input_boxes = BOXES.to(predictor.device)
    transformed_boxes = predictor.transform.apply_boxes_torch(input_boxes, IMAGE.shape[:2])
    return predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=transformed_boxes, multimask_output=False
    )


def points_boxes_and_masks(predictor: Any) -> Any:
    coords = predictor.transform.apply_coords_torch(torch.tensor([[[80.0, 60]], [[120, 70]], [[20, 20]]]), (150, 200))
    boxes = predictor.transform.apply_boxes_torch(BOXES, (150, 200))
    _, _, low_res = predictor.predict_torch(coords, torch.ones(3, 1), boxes, multimask_output=False)
    return predictor.predict_torch(coords, torch.ones(3, 1), boxes, low_res, True, return_logits=True)


IDIOMS = (points, box_and_point, one_box, logits, masks_fed_back, boxes_of_a_detector, points_boxes_and_masks)


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_predictor(predictors, idiom) -> None:
    compare(predictors, idiom)


def test_attributes_of_the_predictor(predictors) -> None:
    ours, theirs = predictors.ours, predictors.theirs
    for name in ("original_size", "input_size", "is_image_set", "device"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert_same(ours.features, theirs.features)
    assert_same(ours.get_image_embedding(), theirs.get_image_embedding())
    assert ours.model.image_encoder.img_size == theirs.model.image_encoder.img_size


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_set_image_and_reset_image(models, image_format) -> None:
    """Here each resizes on its own."""
    found, expected = sami.SamPredictor(models["ours"]), segment_anything.SamPredictor(models["theirs"])
    for predictor in (found, expected):
        predictor.set_image(IMAGE, image_format)
    spread = expected.features.std()
    assert (found.features - expected.features).abs().max() < 0.02 * spread
    assert found.original_size == expected.original_size and found.input_size == expected.input_size
    again = sami.SamPredictor(models["ours"])
    pixels = again.transform.apply_image(IMAGE if image_format == "RGB" else IMAGE[..., ::-1])
    again.set_torch_image(torch.as_tensor(pixels).permute(2, 0, 1)[None], IMAGE.shape[:2])
    torch.testing.assert_close(again.features, found.features)
    for predictor in (found, expected):
        predictor.reset_image()
        assert predictor.is_image_set is False and predictor.features is None


def test_batched_input(models) -> None:
    outputs = []
    for sam in (models["ours"], models["theirs"]):
        resize_transform = ResizeLongestSide(sam.image_encoder.img_size)

        def prepare_image(image, transform, device):
            image = transform.apply_image(image)
            image = torch.as_tensor(image, device=device.device)
            return image.permute(2, 0, 1).contiguous()

        batched_input = [
            {
                "image": prepare_image(IMAGE, resize_transform, sam),
                "boxes": resize_transform.apply_boxes_torch(BOXES, IMAGE.shape[:2]),
                "original_size": IMAGE.shape[:2],
            },
            {
                "image": prepare_image(OTHER, resize_transform, sam),
                "point_coords": resize_transform.apply_coords_torch(torch.tensor([[[40.0, 60], [9, 9]]]), (120, 90)),
                "point_labels": torch.tensor([[1, 0]]),
                "mask_inputs": torch.linspace(-1, 1, 64).expand(1, 1, 64, 64),
                "original_size": OTHER.shape[:2],
            },
        ]
        outputs.append([sam(batched_input, multimask_output=multimask) for multimask in (False, True)])
    for found, expected in zip(chain(*outputs[0]), chain(*outputs[1]), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)


def test_batched_input_that_is_not_resized_is_refused(models) -> None:
    for pixels, size in ((IMAGE, IMAGE.shape[:2]), (np.zeros((300, 400, 3), np.uint8), (300, 400))):
        given = {"image": torch.as_tensor(pixels).permute(2, 0, 1), "original_size": size, "boxes": BOXES}
        message = rf"image is \[3, {size[0]}, {size[1]}\], expected \[3, 192, 256\] .*use ResizeLongestSide"
        with pytest.raises(ValueError, match=message):
            models["ours"]([given], multimask_output=False)
    with pytest.raises(ValueError, match="no image"):
        models["ours"]([], multimask_output=False)


def test_methods_and_attributes_of_the_model(models) -> None:
    ours, theirs = models["ours"], models["theirs"]
    pixels = torch.as_tensor(OTHER[:192]).permute(2, 0, 1)
    assert_same(ours.preprocess(pixels), theirs.preprocess(pixels))
    low_res = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes = ((192, 256), (150, 200))
    assert_same(ours.postprocess_masks(low_res, *sizes), theirs.postprocess_masks(low_res, *sizes))
    for name in ("pixel_mean", "pixel_std"):
        assert_same(getattr(ours, name), getattr(theirs, name))
    for name in ("mask_threshold", "image_format", "device"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("size", [(150, 200), (90, 31), (256, 256), (1000, 1999)])
def test_transform(size) -> None:
    ours, theirs = ResizeImage(SIDE), ResizeLongestSide(SIDE)
    coords, boxes = np.array([[[3, 4], [20, 30]]]), BOXES.numpy()
    assert_same(ours.apply_coords(coords, size), theirs.apply_coords(coords, size))
    assert_same(ours.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size))
    assert_same(ours.apply_boxes(boxes[0], size), theirs.apply_boxes(boxes[0], size))
    assert_same(
        ours.apply_coords_torch(torch.tensor(coords), size), theirs.apply_coords_torch(torch.tensor(coords), size)
    )
    assert_same(ours.apply_boxes_torch(BOXES.long(), size), theirs.apply_boxes_torch(BOXES.long(), size))
    image = seeded_image("drop-in-2", *size)
    found, expected = ours.apply_image(image), theirs.apply_image(image)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01
    batch = torch.as_tensor(image).permute(2, 0, 1)[None].float()
    assert (ours.apply_image_torch(batch)[0].permute(1, 2, 0) - torch.as_tensor(expected)).abs().max() <= 1


def test_registry(tmp_path, monkeypatch) -> None:
    registry = sami.sam_model_registry
    assert set(segment_anything.sam_model_registry) | {"vit_t"} == set(registry)
    names = {"vit_b": "sam_vit_b", "vit_l": "sam_vit_l", "vit_h": "sam_vit_h", "default": "sam_vit_h"}
    with torch.device("meta"):
        assert {kind: registry[kind]().name for kind in names} == names
    sam = registry["vit_t"]()
    torch.save(sam.state_dict(), tmp_path / "mobile_sam.pt")
    loaded = registry["vit_t"](checkpoint=str(tmp_path / "mobile_sam.pt"))
    assert loaded.name == "mobile_sam" and not loaded.training
    torch.testing.assert_close(loaded.state_dict(), sam.state_dict(), rtol=0, atol=0)
