import pytest
import torch
import torch.nn.functional as F

from sami.ops import cpu_kernels
from sami.ops.cpu_kernels import attend, attend_by_rows, by_onednn, linear

tokens, weight, bias = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(3)


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

    monkeypatch.setattr(cpu_kernels, "attend_by_rows", by_rows)
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


@pytest.mark.parametrize("offset", [bias, None])
def test_linear_equals_torchs(offset):
    torch.testing.assert_close(linear(tokens, weight, offset), F.linear(tokens, weight, offset))
    columns = torch.randn(8, 3).T  # not contiguous
    torch.testing.assert_close(linear(tokens[:, 1:], columns, offset), F.linear(tokens[:, 1:], columns, offset))


def test_where_the_other_library_cannot_help(monkeypatch):
    trained = weight.clone().requires_grad_()
    assert not by_onednn(tokens, trained) and linear(tokens, trained).requires_grad
    assert not by_onednn(tokens.bfloat16(), weight.bfloat16()) and not by_onednn(tokens.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(tokens, weight).dtype == torch.bfloat16
    graph = torch.jit.trace(lambda x: linear(x, weight), tokens).graph
    assert "mkldnn" not in str(graph)
    monkeypatch.setattr(cpu_kernels, "ONEDNN", None)
    torch.testing.assert_close(linear(tokens, weight), F.linear(tokens, weight))


@pytest.mark.skipif(cpu_kernels.ONEDNN is None, reason="torch without oneDNN")
def test_inference_in_fp32_goes_there():
    with torch.no_grad():
        assert by_onednn(tokens, weight.clone().requires_grad_())
