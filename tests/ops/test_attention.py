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


def test_only_bf16_inference_goes_by_rows(monkeypatch):
    calls = []

    def by_rows(*arguments):
        calls.append(1)
        return attend_by_rows(*arguments)

    monkeypatch.setattr(attention, "attend_by_rows", by_rows)
    q, k, v = qkv(32, torch.bfloat16)
    expected = F.scaled_dot_product_attention(*qkv(32, torch.float32))
    assert (attend(q, k, v).float() - expected).abs().max() < 0.03
    assert len(calls) == 1
    attend(*qkv(32, torch.float32))
    attend(q.requires_grad_(), k, v).sum().backward()
    assert len(calls) == 1
