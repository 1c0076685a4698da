import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sami.models.weights import (
    build_random,
    download,
    load_state_dict_file,
    load_strictly,
    weights_digest,
)

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}


class RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def assert_same(found: dict, expected: dict) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)  # dtypes too


def test_formats_and_wrappers(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    torch.save(WEIGHTS, tmp_path / "b.pth")
    torch.save({"model": WEIGHTS, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "mae.pth")
    torch.save({"state_dict": WEIGHTS, "arch": "x"}, tmp_path / "timm.pth.tar")
    torch.save(WEIGHTS, tmp_path / "before_1_6.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert_same(load_state_dict_file(path), WEIGHTS)


def test_bad_files_are_named(tmp_path):
    bad = {
        name: tmp_path / name for name in ("cut.pth", "cut.safetensors", "text.pth", "empty.pth", "page.safetensors")
    }
    torch.save({"weight": torch.randn(1000)}, tmp_path / "whole.pth")
    save_file({"weight": torch.randn(1000)}, tmp_path / "whole.safetensors")
    bad["cut.pth"].write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    bad["cut.safetensors"].write_bytes((tmp_path / "whole.safetensors").read_bytes()[:2000])
    bad["text.pth"].write_text("<html>404: not found</html>")
    bad["empty.pth"].write_bytes(b"")
    bad["page.safetensors"].write_text("<html>404: not found</html>")
    for path in bad.values():
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read as a checkpoint.*Download it again"):
            load_state_dict_file(path)
    with pytest.raises(ValueError, match=r"nowhere\.pth: no such file"):
        load_state_dict_file(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("wrapped", [True, False])
def test_code_in_a_file_does_not_run(tmp_path, wrapped):
    trap = tmp_path / "trap"
    content = {"weight": torch.zeros(1), "other": RunsCode(str(trap))}
    if wrapped:
        torch.save(content, tmp_path / "bad.pth")
    else:
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(RunsCode(str(trap))))
    with pytest.raises(ValueError, match=r"bad\.pth cannot be read"):
        load_state_dict_file(tmp_path / "bad.pth")
    assert not trap.exists()


def test_files_without_a_state_dict(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"weight": torch.zeros(3), "epoch": 4}, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not tensors by name"):
        load_state_dict_file(tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="no tensors by name: epoch"):
        load_state_dict_file(tmp_path / "mixed.pth")
    torch.save({0: torch.zeros(3)}, tmp_path / "numbered.pth")
    with pytest.raises(ValueError, match="no tensors by name: 0"):
        load_state_dict_file(tmp_path / "numbered.pth")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_strict_loading(device):
    module = nn.Linear(3, 2, device=device)
    load_strictly(module, {name: value.half() for name, value in WEIGHTS.items()}, source="here")
    assert_same(dict(module.state_dict()), WEIGHTS)  # in the module's float32, whatever the file's


def test_differences_are_listed_and_nothing_is_loaded():
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_strictly(module, {"weight": torch.zeros(2, 4), "gain": torch.zeros(2)}, source="file.pth")
    for part in ("file.pth", "1 missing: bias", "1 unexpected: gain", "weight is [2, 4], needed [2, 3]"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="missing: bias"):
        load_strictly(module, {"weight": torch.zeros(2, 3)}, source="file.pth")
    assert_same(dict(module.state_dict()), before)


def test_failed_download_says_what_to_do():
    def build() -> nn.Module:
        raise OSError("no route to host\nand more")

    with pytest.raises(ConnectionError, match=r"no route to host\).*fetch x\.pth, and set weights"):
        download(build, advice="fetch x.pth", option="weights")


def test_random_weights_are_always_the_same_and_leave_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="net has random weights"):
        first = build_random(lambda: nn.Linear(3, 2), announce="net")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.weight, build_random(lambda: nn.Linear(3, 2), announce=None).weight)


def test_digest_follows_weights_names_and_shapes() -> None:
    first = nn.Linear(3, 2)
    second = nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second) == weights_digest(first.to("cpu"))
    with torch.no_grad():
        second.bias[0] += 1e-6
    assert weights_digest(first) != weights_digest(second)
    assert weights_digest(nn.Sequential(first)) != weights_digest(first)
    assert weights_digest(nn.Identity()) == weights_digest(nn.ReLU())  # a target without weights
