import os
import subprocess
from pathlib import Path

import pytest
import torch

from sami.callbacks.checkpoint import RunCheckpoint, WholeFileIO
from sami.training import check_contract


def test_a_failed_write_keeps_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeFileIO().save_checkpoint({"step": 1}, path)

    class Unwritable:
        def __reduce__(self) -> None:
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        WholeFileIO().save_checkpoint({"weights": torch.zeros(1000), "bad": Unwritable()}, path)
    assert WholeFileIO().load_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_keeps_the_good_file(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        path = tmp_path / "last.ckpt"
        WholeFileIO().save_checkpoint({"weights": torch.zeros(1000)}, path)
        with pytest.raises((OSError, RuntimeError)):
            WholeFileIO().save_checkpoint({"weights": torch.zeros(100_000)}, path)
        assert len(WholeFileIO().load_checkpoint(path)["weights"]) == 1000
        assert os.listdir(tmp_path) == ["last.ckpt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_only_tensors_and_plain_containers_are_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/sprung",)

    torch.save({"global_step": 1, "trap": Trap()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read"):
        WholeFileIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_contract_lists_every_difference(tmp_path: Path) -> None:
    before = {"seed": 0, "a.b": 1, "gone": 2}
    callback = RunCheckpoint(str(tmp_path / "last.ckpt"), every_minutes=1, every_n_steps=None, contract=before)
    checkpoint = {"callbacks": {"RunCheckpoint": callback.state_dict()}}
    check_contract(tmp_path / "last.ckpt", checkpoint, dict(before))
    with pytest.raises(ValueError, match="another name") as error:
        check_contract(tmp_path / "last.ckpt", checkpoint, {"seed": 0, "a.b": 3, "new": 4})
    for line in ("a.b: 1 in the checkpoint, 3 now", "gone: 2 in the checkpoint, None now", "new: None in"):
        assert line in str(error.value)
    assert "seed" not in str(error.value)


def test_a_checkpoint_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    """Its settings have other names: that they differ would say nothing."""
    checkpoint = {"callbacks": {"RunCheckpoint": {"contract": {"seed": 0}}}}
    with pytest.raises(ValueError, match=r"another version of sami.*start another with name=.*safetensors"):
        check_contract(tmp_path / "last.ckpt", checkpoint, {"seed": 0})
