"""`SamPredictor` against those of segment-anything and MobileSAM, and EfficientSAM's forward, on stand-in weights."""

import numpy as np
import pytest
import torch
from golden.seeded import seeded_image
from released_files import golden_of, shapes_of, write_checkpoint

from sami.models.build import build_sam
from sami.models.weight_names import to_ours
from sami.models.weights import load_strictly
from sami.predict.predictor import SamPredictor

TOLERANCE = 1e-4  # relative; the project promises 1e-3, and 3e-6 was seen


def assert_equal(found: np.ndarray, golden: np.ndarray) -> None:
    assert found.shape == golden.shape
    assert np.abs(found - golden).max() <= TOLERANCE * np.abs(golden).max()


def prompts(golden: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    points, labels, box = golden["points_xy"], golden["point_labels"], golden["box_xyxy"]
    both = {"point_coords": points, "point_labels": labels}
    return {
        "point": {"point_coords": points[:1], "point_labels": labels[:1], "multimask_output": True},
        "points": {**both, "multimask_output": True},
        "box": {"box": box, "multimask_output": False},
        "box_points": {**both, "box": box, "multimask_output": False},
        "mask_prompt": {**both, "multimask_output": False},
    }


@pytest.mark.parametrize(("name", "embedding_stride"), [("sam_vit_b", (8, 4)), ("mobile_sam", (16, 8))])
def test_sam_predictor(name, embedding_stride, tmp_path):
    golden = golden_of(name)
    predictor = SamPredictor(build_sam(name, write_checkpoint(name, tmp_path)))
    predictor.set_image(seeded_image("golden-image-1", *golden["original_size"]))
    assert predictor.frames[0].input_size == tuple(golden["input_size"])
    channels, cells = embedding_stride
    embedding = predictor.get_image_embedding()
    assert_equal(embedding[:, ::channels, ::cells, ::cells].numpy(), golden["embedding"])

    mask_input = None
    for prompt, options in prompts(golden).items():
        if prompt == "mask_prompt":
            options["mask_input"] = mask_input
        logits, ious, low_res = predictor.predict(**options, return_logits=True)
        if prompt == "point":
            best = ious.argmax()
            mask_input = low_res[best : best + 1]
        assert logits.shape[1:] == tuple(golden["original_size"])
        assert_equal(low_res[:, ::8, ::8], golden[f"{prompt}_low_res"])
        assert_equal(ious, golden[f"{prompt}_iou"])
        assert_equal(logits[:, ::32, ::32], golden[f"{prompt}_logits"])
        if f"{prompt}_low_res_stats" in golden:
            whole = low_res.astype(np.float64)
            assert_equal(np.array([whole.mean(), whole.std(), np.abs(whole).max()]), golden[f"{prompt}_low_res_stats"])
        masks, _, _ = predictor.predict(**options)
        assert masks.dtype == bool and (masks == (logits > 0)).all()


def test_efficient_sam(tmp_path):
    golden = golden_of("efficient_sam_vitt")
    predictor = SamPredictor(build_sam("efficient_sam_vitt", write_checkpoint("efficient_sam_vitt", tmp_path)))
    predictor.set_image(seeded_image("golden-image-0", 768, 1024))
    assert_equal(predictor.get_image_embedding()[:, ::16, ::8, ::8].numpy(), golden["embedding"])

    (one, two, box), labels = golden["points"][0], golden["labels"][0]
    logits, ious, low_res = predictor.predict_batch(
        point_coords_batch=[[one[:1], two, None]],  # the reference is given the first with a point of label -1
        point_labels_batch=[[labels[0][:1], labels[1], None]],
        box_batch=[[None, None, box.flatten()]],
        return_logits=True,
    )
    assert_equal(low_res[0][..., ::8, ::8], golden["low_res_masks"][0])
    assert_equal(ious[0], golden["iou"][0])
    assert_equal(logits[0][..., ::32, ::32], golden["masks"][0])


@pytest.mark.parametrize(
    "name", ["sam_vit_b", "sam_vit_h", "mobile_sam", "repvit_sam", "efficient_sam_vitt", "efficient_sam_vits"]
)
def test_released_names_and_shapes(name):
    with torch.device("meta"):
        released = {key: torch.empty(shape) for key, shape in shapes_of(name).items()}
        sam = build_sam(name)
    load_strictly(sam, to_ours(released), source=name)
    dropped = {key for key in released if key.startswith(("image_encoder.head.", "image_encoder.norm_head."))}
    assert len(to_ours(released)) == len(released) - len(dropped)
    assert not dropped or name == "mobile_sam"
