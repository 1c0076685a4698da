import torch

from sami.cache.codec import TargetCodec
from sami.cache.encode import arrive, encode_and_measure, to_host

B, N, E = 3, 6, 4


def test_figures_are_those_of_the_counted_tokens() -> None:
    torch.manual_seed(0)
    target = 3 + torch.randn(B, N, E)
    counted = torch.rand(B, N) < 0.6
    counted[1] = False
    target[~counted] = 1000  # padding, which is stored but is no figure's business
    stored, figures = encode_and_measure(TargetCodec("fp16", E), target, counted)
    assert stored["values"].shape == (B, N, E)
    decoded = stored["values"].float()
    for image in range(B):
        exact, found = target[image][counted[image]], decoded[image][counted[image]]  # [T, E]
        assert figures["tokens"][image] == len(exact) and figures["views"][image] == (len(exact) > 0)
        torch.testing.assert_close(figures["sum"][image], exact.double().sum(0))
        torch.testing.assert_close(figures["sum_of_squares"][image], exact.double().square().sum(0), rtol=1e-6, atol=0)
        error = (found - exact).double().square().sum()
        torch.testing.assert_close(figures["squared_error"][image], error, rtol=1e-4, atol=1e-12)
        if len(exact):
            cosine = torch.cosine_similarity(found, exact, dim=1).double().mean()
            torch.testing.assert_close(figures["cosine"][image], cosine)
            relative = (error / exact.double().square().sum()).sqrt()
            torch.testing.assert_close(figures["relative_error"][image], relative, rtol=1e-4, atol=1e-12)
    assert figures["relative_error"][1] == figures["cosine"][1] == 0


def test_to_host_and_back() -> None:
    copies, event = to_host({"a": torch.arange(3)}, torch.device("cpu"))
    assert event is None and arrive(copies, event)["a"].tolist() == [0, 1, 2]
