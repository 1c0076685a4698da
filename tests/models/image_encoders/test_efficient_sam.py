import pytest
import timm
import torch

from sami.benchmark.reference_sam import plain_encoder
from sami.models.image_encoders.efficient_sam import EfficientSAMEncoder


def random_image(H: int = 64, W: int = 96, B: int = 2) -> torch.Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(0))


def test_equals_the_released_design():
    encoder = EfficientSAMEncoder("tiny").eval()
    with torch.no_grad():
        expected = plain_encoder(encoder)(random_image())
        torch.testing.assert_close(encoder(random_image()), expected, rtol=0, atol=1e-4)
    assert expected.shape == (2, 256, 4, 6)


def test_equals_timms_blocks_at_the_size_of_pretraining():
    """Without class token and final norm, which EfficientSAM leaves out."""
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="avg").eval()
    network.fc_norm = network.norm = torch.nn.Identity()
    encoder = EfficientSAMEncoder("tiny").eval()
    names = network.state_dict()
    encoder.load_state_dict({**encoder.state_dict(), **{k: v for k, v in names.items() if k != "pos_embed"}})
    encoder.pos_embed.data[:, 1:] = network.pos_embed.data
    encoder.neck = torch.nn.Identity()
    image = random_image(224, 224, 1)
    with torch.no_grad():
        expected = network.forward_features(image).transpose(1, 2).unflatten(2, (14, 14))
        torch.testing.assert_close(encoder(image), expected, rtol=0, atol=1e-4)


def test_gradients_and_recomputing_them():
    encoder = EfficientSAMEncoder("tiny").train()
    found, calls = [], []
    encoder.blocks[5].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable, num_calls in ((False, 1), (True, 2)):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        calls.clear()
        encoder(random_image()).square().mean().backward()
        assert len(calls) == num_calls
        found.append({name: value.grad.clone() for name, value in encoder.named_parameters()})
    calls.clear()
    encoder.eval()(random_image()).sum().backward()
    assert len(calls) == 1
    assert (found[0]["pos_embed"][:, 0] == 0).all() and (found[0]["pos_embed"][:, 1:] != 0).any()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    encoder = EfficientSAMEncoder("tiny", drop_path=0.6)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.6 * number / 11 for number in range(12)])
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(random_image()), encoder(random_image()))
        assert not torch.allclose(encoder.train()(random_image()), encoder(random_image()))


def test_sizes_it_cannot_have():
    with pytest.raises(ValueError, match="size='huge'"):
        EfficientSAMEncoder("huge")
    with pytest.raises(ValueError, match="60x96 pixels is not a whole number of patches"):
        EfficientSAMEncoder("tiny")(random_image(60, 96))
