import pytest
import torch
from torch import nn

from sami.methods.prompt_protocols import SamProtocol
from sami.methods.step_memory import SavedBytes, count_parts, count_step
from sami.models.build import build_sam


def test_bytes_that_a_small_network_keeps():
    network = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    saved = SavedBytes(network.parameters())
    with saved.counting():
        network(torch.zeros(5, 8)).square().sum()
    assert saved.total == 4 * 5 * (8 + 32 + 32 + 4)  # inputs of: first, GELU, second, square; no weights


def test_counting_without_computing_gives_what_computing_keeps():
    protocol = SamProtocol(num_clicks=1, num_refinements=0)
    fake = count_step("efficient_sam_vitt", protocol, B=1, Q=2, S=64, bf16=False)
    sam = build_sam("efficient_sam_vitt", decoder="sam", image_size=64).train()
    real = count_parts(sam, protocol, B=1, Q=2, S=64)
    assert (fake.states, fake.encoder, fake.checkpointed_encoder) == (
        real.states,
        real.encoder,
        real.checkpointed_encoder,
    )
    assert fake.rounds == pytest.approx(real.rounds, rel=0.1)  # a CPU looks whether there is padding at all
    assert 3 * fake.checkpointed_encoder < fake.encoder
    assert fake.peak_of_one_backward - fake.peak == min(fake.rounds)
    assert not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda")


def test_bf16_keeps_less():
    protocol = SamProtocol(num_clicks=0, num_refinements=0)
    full, half = (count_step("efficient_sam_vitt", protocol, B=1, Q=4, S=1024, bf16=on) for on in (False, True))
    assert half.rounds[0] < 0.95 * full.rounds[0] and half.encoder < 0.7 * full.encoder
