import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import nn

from sami.models.pixel_teachers import HogTeacher, PixelTeacher
from sami.models.teachers import INPUT_MEAN, INPUT_STD, SamTeacher, TimmTeacher
from sami.ops.area_resize import area_resize


@pytest.fixture(scope="module")
def sam() -> SamTeacher:
    """ViT-B whose position tables are not zero, as timm's initialisation leaves them."""
    teacher = SamTeacher("sam_vit_b", weights="random")
    generator = torch.Generator().manual_seed(1)
    for name, table in teacher.network.named_parameters():
        if "pos" in name:
            table.normal_(std=0.3, generator=generator)
    return teacher


def sam_like(sam: SamTeacher, **changes) -> SamTeacher:
    """`sam` with other settings, sharing its network."""
    teacher = SamTeacher.__new__(SamTeacher)
    nn.Module.__init__(teacher)
    settings = {
        "network": sam.network,
        "input_size": None,
        "patch_size": 16,
        "position_tables": {},
        "max_batch": 64,
        **changes,
    }
    for name, value in settings.items():
        setattr(teacher, name, value)
    return teacher


def timms_own(sam: SamTeacher) -> nn.Module:
    """The same weights with timm's own attention, which resizes position tables in every forward."""
    network = copy.deepcopy(sam.network)
    for block in network.blocks:
        del block.attn.forward
    return network


def random_image(H: int = 224, W: int = 224, B: int = 1) -> torch.Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(224, 224), (160, 224)])
def test_sam_equals_timms_own_forward(sam, size):
    image = random_image(*size)
    with torch.no_grad():
        expected = timms_own(sam)(image).flatten(2).transpose(1, 2)
    features = sam({"image": image})
    assert features.shape == (1, size[0] * size[1] // 256, 256) and sam.width == 256
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sam({"image": image}), expected, rtol=0, atol=1e-5)  # tables from the second call on


def test_sam_in_groups_is_sam_at_once(sam):
    images = random_image(64, 64, B=3)
    together, in_groups = sam({"image": images}), sam_like(sam, max_batch=2)({"image": images})
    torch.testing.assert_close(in_groups, together, rtol=0, atol=1e-5)


def test_sam_has_sams_epsilon(sam):
    norms = [m for m in sam.network.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 12 * 2 + 2 and {m.eps for m in norms} == {1e-6}


def test_sam_tables_follow_the_dtype(sam, monkeypatch):
    tables = sam.tables_for(random_image())
    assert tables["pos_embed"].shape == (1, 14, 14, 768)
    assert tables["blocks.2.attn.rel_pos_h"].shape == (27, 64)
    assert "blocks.0.attn.rel_pos_h" not in tables
    monkeypatch.setattr(sam.network.pos_embed, "data", sam.network.pos_embed.data.double())
    assert sam.tables_for(random_image())["pos_embed"].dtype == torch.float64


def test_sam_last_block_comes_before_the_neck(sam):
    weights = sam.network.state_dict()
    before = SamTeacher("sam_vit_b", weights="random", layer="last_block")
    before.network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("neck.")})
    features = before({"image": random_image()})
    assert features.shape == (1, 196, 768) and before.width == 768
    with torch.no_grad():
        neck = sam.network.neck(features.transpose(1, 2).reshape(1, 768, 14, 14))
    torch.testing.assert_close(neck.flatten(2).transpose(1, 2), sam({"image": random_image()}), rtol=0, atol=1e-5)


def test_sam_input_size_enlarges_and_averages_back(sam):
    image = random_image(112, 112)
    features = sam_like(sam, input_size=160)({"image": image})
    with torch.no_grad():
        large = timms_own(sam)(F.interpolate(image, (160, 160), mode="bilinear"))  # 10x10
    torch.testing.assert_close(features, area_resize(large, (7, 7)).flatten(2).transpose(1, 2), rtol=0, atol=1e-4)


def test_sam_serves_students_of_another_patch_size(sam):
    assert sam_like(sam, patch_size=32)({"image": random_image()}).shape == (1, 49, 256)
    assert sam_like(sam, patch_size=14)({"image": random_image()}).shape == (1, 256, 256)
    with pytest.raises(ValueError, match="SAM cannot take an image of 210x210"):
        sam_like(sam, patch_size=14)({"image": random_image(210, 210)})
    assert sam_like(sam, patch_size=14, input_size=160)({"image": random_image(210, 210)}).shape == (1, 225, 256)


def test_a_map_that_must_grow_grows_without_steps():
    features = torch.rand(1, 3, 4, 6)
    grown = PixelTeacher().to_tokens(features, random_image(160, 160)).transpose(1, 2).reshape(1, 3, 10, 10)
    torch.testing.assert_close(grown, F.interpolate(features, (10, 10), mode="bilinear"))


def test_sam_reads_metas_and_timms_names(sam, tmp_path):
    weights = {name: value.clone() for name, value in sam.network.state_dict().items()}
    save_file(weights, tmp_path / "timm.safetensors")
    meta = {f"image_encoder.{name.replace('mlp.fc', 'mlp.lin')}": value for name, value in weights.items()}
    torch.save({**meta, "mask_decoder.iou_token.weight": torch.zeros(1, 256)}, tmp_path / "meta.pth")
    for file in ("timm.safetensors", "meta.pth"):
        loaded = SamTeacher("sam_vit_b", weights=str(tmp_path / file)).network.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    with pytest.raises(ValueError, match=r"timm\.safetensors does not fit.*needed \[1, 64, 64, 1024\]"):
        SamTeacher("sam_vit_l", weights=str(tmp_path / "timm.safetensors"))


def test_sam_refuses_the_file_of_another_model(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "deit.pth")
    with pytest.raises(
        ValueError, match=r"deit\.pth does not fit.*30 missing: blocks\.0\.attn\.rel_pos_h.*unexpected: cls_token"
    ):
        SamTeacher("sam_vit_b", weights=str(tmp_path / "deit.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sam_vit_x"}, "sam_vit_x.*sam_vit_b, sam_vit_l, sam_vit_h"),
        ({"layer": "head"}, "head.*neck or last_block"),
        ({"input_size": 1000}, "1000.*multiple of 16"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: no such file"),
    ],
)
def test_sam_says_what_was_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        SamTeacher(**{"weights": "random", **options})


def test_sam_without_network_names_the_file(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConnectionError, match=r"offline.*sam_vit_h_4b8939\.pth.*set weights"):
        SamTeacher("sam_vit_h")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("vit_tiny_patch16_224", 192),
        ("vit_small_patch14_reg4_dinov2", 384),
        ("resnet18", 512),
        ("swin_tiny_patch4_window7_224", 768),
        ("efficientnet_b0", 320),
    ],
)
def test_timm_models_reach_the_students_grid(name, width):
    teacher = TimmTeacher(name, weights="random")
    features = teacher({"image": random_image(B=2)})
    assert teacher.width == width and features.shape == (2, 196, width)


def test_timm_tokens_without_prefix_in_image_order():
    teacher = TimmTeacher("vit_small_patch14_reg4_dinov2", weights="random", patch_size=14)
    image = random_image(154, 182)
    with torch.no_grad():
        tokens = teacher.network.forward_features(image)  # its mean and std are ImageNet's
    assert tokens.shape == (1, 5 + 11 * 13, 384)
    torch.testing.assert_close(teacher({"image": image}), tokens[:, 5:], rtol=0, atol=1e-5)


def test_timm_nhwc_maps():
    teacher = TimmTeacher("swin_tiny_patch4_window7_224", weights="random", patch_size=32)
    with torch.no_grad():
        expected = teacher.network.forward_features(random_image()).flatten(1, 2)  # [1, 7, 7, 768]
    torch.testing.assert_close(teacher({"image": random_image()}), expected, rtol=0, atol=1e-5)


def test_timm_sees_its_own_normalisation(monkeypatch):
    teacher = TimmTeacher("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", weights="random")
    pixels = torch.rand(1, 3, 224, 224)
    seen = []
    monkeypatch.setattr(
        teacher.network, "forward_intermediates", lambda view, **_: [seen.append(view) or view[:, :, ::16, ::16]]
    )
    teacher({"image": (pixels - INPUT_MEAN.reshape(3, 1, 1)) / INPUT_STD.reshape(3, 1, 1)})
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    expected = (pixels - mean) / std
    torch.testing.assert_close(seen[0], expected)


def test_timm_input_size():
    fixed = TimmTeacher("mixer_s16_224", weights="random", input_size=160)
    assert fixed({"image": random_image(192, 192)}).shape == (1, 144, 512)
    with pytest.raises(ValueError, match=r"dinov2 cannot take an image of 256x256.*input_size"):
        TimmTeacher("vit_small_patch14_dinov2", weights="random")({"image": random_image(256, 256)})


def test_timm_files_with_and_without_classifier(tmp_path):
    weights = timm.create_model("vit_tiny_patch16_224").state_dict()
    torch.save(weights, tmp_path / "classifier.pth")
    teacher = TimmTeacher("vit_tiny_patch16_224", weights=str(tmp_path / "classifier.pth"))
    assert torch.equal(teacher.network.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    save_file(dict(teacher.network.state_dict()), tmp_path / "encoder.safetensors")
    TimmTeacher("vit_tiny_patch16_224", weights=str(tmp_path / "encoder.safetensors"))
    with pytest.raises(ValueError, match=r"encoder\.safetensors does not fit"):
        TimmTeacher("resnet18", weights=str(tmp_path / "encoder.safetensors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_clipp_224", "no timm model.*vit_base_patch16_clip_224"),
        ("vit_base_patch16_clip_224.opnai", "Invalid pretrained tag.*vit_base_patch16_clip_224.openai"),
    ],
)
def test_timm_names(name, message):
    with pytest.raises(ValueError, match=message):
        TimmTeacher(name, weights="random")


def small_teachers() -> list:
    tiny = TimmTeacher("vit_tiny_patch16_224", weights="random")
    return [PixelTeacher(), HogTeacher(), tiny, TimmTeacher("resnet18", weights="random")]


def test_teachers_never_train(sam):
    for teacher in [*small_teachers(), sam]:
        holder = nn.ModuleDict({"teacher": teacher}).train()
        assert holder.training and not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        image = random_image().requires_grad_()
        features = teacher({"image": image})
        assert not features.requires_grad and not features.is_inference()


def test_tokens_lie_where_the_picture_changes(sam):
    """Noise in one quadrant changes its tokens most, in every teacher."""
    black, marked = torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 224, 224)
    marked[:, :, :112, 112:] = random_image()[:, :, :112, 112:]  # top right
    for teacher in [*small_teachers(), sam]:
        change = (teacher({"image": marked}) - teacher({"image": black})).norm(dim=-1).reshape(14, 14)
        quadrants = change.reshape(2, 7, 2, 7).mean((1, 3))
        others = quadrants.flatten()[[0, 2, 3]]
        assert quadrants[0, 1] > 1.3 * others.max(), (type(teacher), quadrants)


def test_other_sizes_and_sizes_that_do_not_divide():
    for teacher in small_teachers():
        assert teacher({"image": random_image(160, 256)}).shape == (1, 160, teacher.width)
        with pytest.raises(ValueError, match=r"230x224.*patches of 16"):
            teacher({"image": random_image(230, 224)})
