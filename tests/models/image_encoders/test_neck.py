"""SAM's neck, and the methods that all image encoders share with timm's backbones."""

import pytest
import torch

from sami.models.build import build_image_encoder
from sami.models.image_encoders.neck import build_neck

ENCODERS = {  # name of `build_sam`: channels and pixels per cell of the maps
    "efficient_sam_vitt": [(192, 16)] * 12,
    "mobile_sam": [(64, 4), (128, 8), (160, 16), (320, 16)],
    "repvit_sam_m1_1": [(64, 4), (128, 8), (256, 16), (512, 16)],
    "timm/test_resnet": [(32, 2), (32, 4), (48, 8), (192, 16), (96, 32)],
    "timm/test_vit": [(64, 16)] * 3,
    "sam_vit_b": [(768, 16)] * 12,  # timm's own methods
}


def test_neck_is_sams():
    neck = build_neck(192)
    assert neck[0].bias is None and neck[2].bias is None
    assert neck[1].eps == neck[3].eps == 1e-6


@pytest.mark.parametrize("name", ENCODERS)
def test_feature_info_tells_the_shapes_of_the_intermediates(name):
    with torch.device("meta"):
        encoder, image = build_image_encoder(name, image_size=1024).eval(), torch.empty(1, 3, 1024, 1024)
        embedding, maps = encoder.forward_intermediates(image)
    told = [(info["num_chs"], info["reduction"]) for info in encoder.feature_info]
    assert told == ENCODERS[name] and embedding.shape == (1, 256, 64, 64)
    assert [tuple(part.shape) for part in maps] == [(1, width, 1024 // k, 1024 // k) for width, k in told]


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "sam_vit_b"])
def test_intermediates_are_those_of_the_forward_pass(name):
    torch.manual_seed(0)
    encoder, image = build_image_encoder(name, image_size=64).eval(), torch.randn(1, 3, 64, 96)
    calls = []
    encoder.neck.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        embedding, maps = encoder.forward_intermediates(image)
        torch.testing.assert_close(embedding, encoder(image))
        assert len(calls) == 2
        for indices, numbers in ((2, [-2, -1]), ([-1, 0], [0, -1]), ([1], [1])):
            some = encoder.forward_intermediates(image, indices, stop_early=True, intermediates_only=True)
            torch.testing.assert_close(some, [maps[number] for number in numbers])
    assert len(calls) == 2
    with pytest.raises(ValueError, match="output_fmt=NLC: give NCHW"):
        encoder.forward_intermediates(image, output_fmt="NLC")


def test_nothing_is_computed_behind_the_last_map():
    encoder, calls = build_image_encoder("efficient_sam_vitt").eval(), []
    encoder.blocks[5].register_forward_pre_hook(lambda *_: calls.append(1))
    for last, num_calls in ((4, 0), (5, 1)):
        encoder.forward_intermediates(torch.zeros(1, 3, 32, 32), [last], stop_early=True, intermediates_only=True)
        assert len(calls) == num_calls
