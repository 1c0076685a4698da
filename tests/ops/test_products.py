import pytest
import torch
import torch.nn.functional as F

from sami.ops import products
from sami.ops.products import by_onednn, linear

tokens, weight, bias = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(3)


@pytest.mark.parametrize("offset", [bias, None])
def test_equals_torchs(offset):
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
    monkeypatch.setattr(products, "ONEDNN", None)
    torch.testing.assert_close(linear(tokens, weight), F.linear(tokens, weight))


@pytest.mark.skipif(products.ONEDNN is None, reason="torch without oneDNN")
def test_inference_in_fp32_goes_there():
    with torch.no_grad():
        assert by_onednn(tokens, weight.clone().requires_grad_())
