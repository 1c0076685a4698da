import pytest
import torch
import torch.nn.functional as F

from sami.ops import attention
from sami.ops.attention import attend, attend_by_rows


def qkv(N: int, dtype: torch.dtype) -> torch.Tensor:
    """As a linear layer gives them: [3, 2, heads, N, 16], not contiguous."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, N, 3, 3, 16, generator=generator).permute(2, 0, 3, 1, 4).to(dtype)


@pytest.mark.parametrize("N", [1, 7, 128, 300])
def test_by_rows_equals_fused(N):
    q, k, v = qkv(N, torch.float64)
    torch.testing.assert_close(attend_by_rows(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("scale", [1.0, 40.0])  # 40: scores up to some thousands, whose powers would overflow
def test_by_rows_in_fp32(scale):
    q, k, v = qkv(300, torch.float32)
    expected = F.scaled_dot_product_attention(scale * q.double(), k.double(), v.double())
    torch.testing.assert_close(attend_by_rows(scale * q, k, v).double(), expected, rtol=0, atol=1e-5 * scale)


def test_only_inference_goes_by_rows(monkeypatch):
    calls = []

    def by_rows(*arguments):
        calls.append(1)
        return attend_by_rows(*arguments)

    monkeypatch.setattr(attention, "attend_by_rows", by_rows)
    expected = F.scaled_dot_product_attention(*qkv(32, torch.float32))
    for number, (dtype, tolerance) in enumerate([(torch.bfloat16, 0.03), (torch.float32, 1e-6)], start=1):
        assert (attend(*qkv(32, dtype)).float() - expected).abs().max() < tolerance
        assert len(calls) == number
    q, k, v = qkv(32, torch.float32)
    attend(q.requires_grad_(), k, v).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        attend(q, k, v)
    assert len(calls) == 3
