import json

import pytest
import timm
import torch
from released_files import write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sami.models.build import MODELS, build_sam, load_backbone, load_decoder, save_sam
from sami.models.image_encoders.efficient_sam import EfficientSAMEncoder
from sami.models.vit import ViT


@pytest.fixture(scope="module")
def tiny():
    return build_sam("efficient_sam_vitt", decoder="sam", resize_mode="pad", image_size=64)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    return {name: write_checkpoint(name, folder) for name in ("efficient_sam_vitt", "mobile_sam")}


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds(name):
    with torch.device("meta"):
        sam = build_sam(name)
    assert sam.name == name and sam.image_size == 1024 and not sam.training
    assert sam.resize_mode == ("stretch" if name.startswith("efficient") else "pad")
    assert sam.prompt_encoder.takes_background != name.startswith("efficient")


def test_numbers_of_parameters_are_the_papers():
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build_sam(name).parameters()) for name in MODELS}
    assert counts["efficient_sam_vitt"] == 10_223_204
    assert counts["efficient_sam_vits"] == 26_413_028
    assert round(counts["sam_vit_h"] / 1e6) == 641


def test_own_file_describes_its_model(tiny, tmp_path):
    path = tmp_path / "sam.safetensors"
    save_sam(tiny, path, metadata={"step": "3"})
    with safe_open(path, "pt") as file:
        assert file.metadata()["step"] == "3"
    again = build_sam(checkpoint=path)
    for option in ("name", "image_size", "resize_mode", "decoder"):
        assert getattr(again, option) == getattr(tiny, option)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.embed(image), tiny.embed(image))
    with pytest.raises(ValueError, match="saved with image_size=64, not 128"):
        build_sam(checkpoint=path, image_size=128)
    with pytest.raises(ValueError, match="saved with name=efficient_sam_vitt, not mobile_sam"):
        build_sam("mobile_sam", path)


def test_a_file_that_says_which_prompts_get_several_answers(tiny, tmp_path):
    """Files did once: it is derived now."""
    path = tmp_path / "sam.safetensors"
    save_sam(tiny, path)
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["sam"])
    save_file(tiny.state_dict(), path, metadata={"sam": json.dumps({**described, "several_for": "click"})})
    torch.testing.assert_close(build_sam(checkpoint=path).state_dict(), tiny.state_dict())


def test_sams_own_encoders_have_one_size():
    with pytest.raises(ValueError, match="image_size=512: sam_vit_b has tables for 1024 pixels"):
        build_sam("sam_vit_b", image_size=512)


@pytest.mark.parametrize("name", ["sam_vit_b", "mobile_sam", "efficient_sam_vitt"])
def test_activations_can_be_recomputed(name):
    with torch.device("meta"):
        sam = build_sam(name)
    for enable in (True, False):
        sam.set_grad_checkpointing(enable)
        assert sam.mask_decoder.grad_checkpointing == sam.image_encoder.grad_checkpointing == enable


def test_unknown_names():
    with pytest.raises(ValueError, match="name='sam_vit_x': choose one of sam_vit_b, "):
        build_sam("sam_vit_x")
    with pytest.raises(ValueError, match="no name given"):
        build_sam()


def test_missing_unknown_and_misshapen_parameters_are_listed(released, tmp_path):
    weights = torch.load(released["efficient_sam_vitt"], weights_only=True)["model"]
    weights.pop("mask_decoder.iou_token.weight")
    weights["mask_decoder.extra"] = torch.zeros(1)
    weights["prompt_encoder.invalid_points.weight"] = torch.zeros(1, 8)
    torch.save({"model": weights}, tmp_path / "broken.pt")
    with pytest.raises(ValueError) as caught:
        build_sam("efficient_sam_vitt", tmp_path / "broken.pt")
    message = str(caught.value)
    assert "broken.pt does not fit Sam" in message
    assert "1 missing: mask_decoder.iou_token.weight" in message
    assert "1 unexpected: mask_decoder.extra" in message
    assert "not_a_point_embed.weight is [1, 8], needed [1, 256]" in message


def test_a_file_of_another_model(released):
    with pytest.raises(ValueError, match="does not fit Sam"):
        build_sam("efficient_sam_vits", released["efficient_sam_vitt"])
    with pytest.raises(ValueError, match="does not fit Sam"):
        build_sam("sam_vit_b", released["mobile_sam"])


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("name", ["sam_vit_b", "efficient_sam_vitt"])
def test_files_that_are_no_weights(name, tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint at all")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for file in ("evil.pt", "noise.pt", "empty.safetensors", "absent.pt"):
        with pytest.raises(ValueError, match=file):
            build_sam(name, tmp_path / file)
    assert "code ran" not in capsys.readouterr().out


def test_a_description_that_is_none(tiny, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"sam": "{"})
    with pytest.raises(ValueError, match=r"odd\.safetensors does not fit Sam"):
        build_sam("efficient_sam_vitt", tmp_path / "odd.safetensors")
    sound = {"name": "x", "image_size": 64, "resize_mode": "pad", "decoder": "sam"}
    for described, message in (
        (sound, "name='x'"),
        ({**sound, "image_size": "big"}, "not what save_sam writes"),
        ([1], "not what save_sam writes"),
        ({}, "does not say which model it is"),
    ):
        save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"sam": json.dumps(described)})
        with pytest.raises(ValueError, match=message):
            build_sam(checkpoint=tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        build_sam(checkpoint=tmp_path / "absent.safetensors")


def test_the_decoder_that_drew_prompts_is_gone(tmp_path):
    path = tmp_path / "drawn.safetensors"
    drawn = {"name": "efficient_sam_vitt", "image_size": 64, "resize_mode": "pad", "decoder": "sam_drawn_prompts"}
    save_file({"a": torch.zeros(1)}, path, metadata={"sam": json.dumps({**drawn, "several_for": "click"})})
    for options in ({"checkpoint": path}, {"checkpoint": path, "decoder": "sam"}, {**drawn, "checkpoint": None}):
        with pytest.raises(ValueError, match="decoder=sam_drawn_prompts no longer exists"):
            build_sam(**options)


@pytest.mark.parametrize("image_size", [224, 96])
def test_backbone_of_sami(image_size, tmp_path):
    """The student's patch tokens are the encoder's where the class token cannot matter: before the first block."""
    student = ViT("tiny", image_size=image_size)
    save_file(student.state_dict(), tmp_path / "backbone.safetensors")
    encoder = EfficientSAMEncoder("tiny")
    neck = [value.clone() for value in encoder.neck.state_dict().values()]
    load_backbone(encoder, tmp_path / "backbone.safetensors")
    for name, value in student.blocks.state_dict().items():
        torch.testing.assert_close(encoder.blocks.state_dict()[name], value)
    assert all(torch.equal(a, b) for a, b in zip(neck, encoder.neck.state_dict().values(), strict=True))
    side = image_size // 16
    table = encoder.position_table((side, side)).flatten(2).transpose(1, 2)
    tolerance = 1e-6 if image_size == 224 else 0.1  # enlarged and shrunk again
    torch.testing.assert_close(table, student.pos_embed[:, 1:], rtol=0, atol=tolerance)


def test_backbone_of_timm_and_of_mae(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    encoder = EfficientSAMEncoder("tiny")
    load_backbone(encoder, tmp_path / "timm.pth")
    torch.testing.assert_close(encoder.blocks[3].mlp.fc1.weight, network.blocks[3].mlp.fc1.weight)
    mae = {**network.state_dict(), "mask_token": torch.zeros(1, 1, 512), "decoder_pos_embed": torch.zeros(1, 197, 512)}
    torch.save({"model": {k: v for k, v in mae.items() if not k.startswith("head")}}, tmp_path / "mae.pth")
    load_backbone(EfficientSAMEncoder("tiny"), tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="does not fit EfficientSAMEncoder"):
        load_backbone(EfficientSAMEncoder("small"), tmp_path / "timm.pth")
    torch.save({**network.state_dict(), "pos_embed": torch.zeros(1, 190, 192)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="190 rows belongs to no square grid"):
        load_backbone(EfficientSAMEncoder("tiny"), tmp_path / "odd.pth")


def test_decoder_of_another_file(tiny, released):
    load_decoder(tiny, released["mobile_sam"])
    weights = torch.load(released["mobile_sam"], weights_only=True)
    own = tiny.state_dict()
    for name in ("mask_decoder.output_upscaling.3.weight", "prompt_encoder.point_embeddings.0.weight"):
        torch.testing.assert_close(own[name], weights[name])
    with pytest.raises(ValueError, match=r"point_embeddings\.0"):
        load_decoder(tiny, released["efficient_sam_vitt"])


@pytest.mark.parametrize(("old_header", "resize_mode"), [("squash", "stretch"), ("pad", "pad")])
def test_headers_of_before_resize_mode(tmp_path, old_header, resize_mode) -> None:
    path = tmp_path / "segmenter.safetensors"
    save_sam(build_sam("efficient_sam_vitt", image_size=64, resize_mode=resize_mode, decoder="sam"), path)
    said = f'{{"name": "efficient_sam_vitt", "image_size": 64, "preprocess": "{old_header}", "decoder": "sam", "several_for": "lone"}}'  # noqa: E501
    save_file(load_file(path), path, metadata={"sam": said})
    assert build_sam(checkpoint=path).resize_mode == resize_mode
