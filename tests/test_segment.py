import json

import numpy as np
import pytest
import torch
from conftest import draw_image
from PIL import Image
from pycocotools import mask as coco

from sami.models.build import build_sam, save_sam
from sami.models.sam import Sam
from sami.predict.image import read_image
from sami.predict.zoom import predict_zoomed
from sami.segment import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = build_sam("efficient_sam_vitt", decoder="sam", resize_mode="pad", image_size=64)
    path = tmp_path_factory.mktemp("run") / "sam.safetensors"
    save_sam(sam, path)
    return str(path)


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(draw_image(0, height=60, width=80)).save(path)
    return str(path)


def test_points_and_a_box_are_one_object(image_file, checkpoint, tmp_path, capsys):
    files = [f"--output={tmp_path}/out/o.png", f"--masks={tmp_path}/m", f"--rle={tmp_path}/r/masks.json"]
    prompts = ["--point", "40,30", "--point", "10,8,0", "--box", "20,10,60,50"]
    main([image_file, *prompts, "--checkpoint", checkpoint, *files])
    printed = capsys.readouterr().out
    assert printed.startswith("object 0: predicted IoU ") and printed.count("object") == 1
    assert Image.open(tmp_path / "out" / "o.png").size == (80, 60)
    mask = np.asarray(Image.open(tmp_path / "m" / "object_0.png"))
    (record,) = json.loads((tmp_path / "r" / "masks.json").read_text())
    assert (coco.decode(record["segmentation"]) == mask).all()
    assert record["area"] == mask.sum() and f"{record['predicted_iou']:.3f}" in printed


def test_the_most_promising_of_three_is_shown(image_file, checkpoint, tmp_path, monkeypatch, capsys):
    def three(self, image, coords, labels, mask_input=None, *, multimask_output):
        assert multimask_output
        logits = torch.full((1, 1, 3, 16, 16), -1.0)
        logits[0, 0, 1] = 1
        return logits, torch.tensor([[[0.2, 0.9, 0.4]]])

    monkeypatch.setattr(Sam, "decode", three)
    main([image_file, "--point=40,30", "--checkpoint", checkpoint, f"--output={tmp_path}/o.png"])
    assert (
        capsys.readouterr().out
        == "object 0: predicted IoU 0.900, 100.0% of the image\nwritten: " + f"{tmp_path}/o.png\n"
    )


def test_several_boxes_are_several_objects(image_file, checkpoint, tmp_path, capsys):
    main([image_file, "--box=1,1,30,30", "--box=40,5,70,50", "--checkpoint", checkpoint, f"--output={tmp_path}/o.png"])
    assert capsys.readouterr().out.count("predicted IoU") == 2


def test_zoom_looks_at_each_box_by_itself(image_file, checkpoint, tmp_path, capsys):
    boxes = [(1, 1, 30, 30), (40, 5, 60, 21)]
    asked = [f"--box={','.join(map(str, box))}" for box in boxes]
    main(
        [
            image_file,
            "--zoom",
            *asked,
            "--checkpoint",
            checkpoint,
            f"--output={tmp_path}/o.png",
            f"--masks={tmp_path}/m",
        ]
    )
    assert capsys.readouterr().out.count("predicted IoU") == 2
    found, ious = predict_zoomed(build_sam(checkpoint=checkpoint), read_image(image_file), boxes)
    for number, (masks, confidence) in enumerate(zip(found, ious, strict=True)):
        written = np.asarray(Image.open(tmp_path / "m" / f"object_{number}.png"))
        assert ((written > 0) == masks[confidence.argmax()]).all()


@pytest.mark.parametrize(("decoder", "asked"), [("sam", [True, False]), ("efficient_sam", [True, True])])
def test_three_candidates_are_asked_for_where_the_model_was_trained_to(
    image_file, tmp_path, monkeypatch, decoder, asked
):
    save_sam(build_sam("efficient_sam_vitt", decoder=decoder, image_size=64), tmp_path / "sam.safetensors")
    seen, decode = [], Sam.decode
    monkeypatch.setattr(Sam, "decode", lambda *args, **options: seen.append(options) or decode(*args, **options))
    for prompts in (["--box=1,1,30,30"], ["--box=1,1,30,30", "--point=9,9"]):
        main([image_file, *prompts, f"--checkpoint={tmp_path}/sam.safetensors", f"--output={tmp_path}/o.png"])
    assert [options["multimask_output"] for options in seen] == asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look for"),
        (["--zoom"], "nothing to look for"),
        (["--zoom", "--point", "40,30"], "--zoom looks closer at boxes"),
        (["--zoom", "--box=4,4,9,9", "--point", "40,30"], "--zoom looks closer at boxes"),
        (["--zoom", "--box=9,4,4,9"], "has no area"),
        (["--zoom", "--box=90,4,99,9"], "is outside the image"),
        (["--point", "90,30"], "point (90, 30) is outside the image, which is 80 wide and 60 high"),
        (["--point", "40"], "--point 40: give 2 or 3 numbers"),
        (["--point", "a,b"], "--point a,b: give 2 or 3 numbers"),
        (["--point", "4,5,7"], "third number"),
        (["--box", "5,5,1,10"], "has no area"),
        (["--box", "5,5,10"], "--box 5,5,10: give 4 numbers"),
        (["--point", "4,5", "--box=1,1,5,5", "--box=2,2,9,9"], "points and several boxes"),
        (["--point", "4,5", "--model", "mobile_sam"], "saved with name=efficient_sam_vitt"),
        (["--point", "4,5", "--image-size", "512"], "saved with image_size=64"),
        (["--point", "4,5", "--device", "tpu"], "device=tpu"),
        (["--point", "4,5", "--output", "masks.xyz"], "--output masks.xyz: give a name that ends in .png"),
        (["--point", "4,5", "--output", "masks.psd"], "--output masks.psd: give a name that ends in .png"),
        (["--point", "4,5", "--output", "folder.png"], "--output folder.png is a folder"),
        (["--point", "4,5", "--rle", "file/masks.json"], "--rle file/masks.json"),
        (["--point", "4,5", "--masks", "file/sub"], "--masks file/sub: "),
        (["--point", "4,5", "--masks", "file"], "--masks file: "),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    image_file, checkpoint, arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main([image_file, *arguments, "--checkpoint", checkpoint])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error and "Traceback" not in error


def test_wrong_places_for_results_are_told_before_the_work_is_done(image_file, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main([image_file, "--point=4,5", "--checkpoint=never_read.pt", f"--output={tmp_path}/file/masks.png"])
    assert "is no folder that can be written to" in capsys.readouterr().err


def test_files_that_are_missing_or_wrong(image_file, checkpoint, capsys, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    released = tmp_path / "released.pt"
    torch.save({"a": torch.zeros(1)}, released)
    for arguments, message in (
        ([str(tmp_path / "absent.jpg"), "--checkpoint", checkpoint], "absent.jpg: no such file"),
        ([str(tmp_path / "text.jpg"), "--checkpoint", checkpoint], "cannot be read as an image"),
        ([image_file, "--checkpoint", str(tmp_path / "absent.pt"), "--model", "mobile_sam"], "absent.pt: no such file"),
        ([image_file, "--checkpoint", str(released)], "give its name. Released files need --model, one of sam_vit_b"),
        ([image_file, "--checkpoint", str(tmp_path / "absent.safetensors")], "absent.safetensors: no such file"),
        ([image_file, "--checkpoint", checkpoint, "--point=1,2,inf"], "the third number is 1"),
        ([image_file, "--checkpoint", str(released), "--model", "sam_vit_b"], "does not fit Sam"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--point", "4,5"])
        assert message in capsys.readouterr().err
