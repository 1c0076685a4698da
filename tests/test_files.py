import subprocess
import sys
from pathlib import Path

import pytest

from sami.files import whole_file


def test_replaces_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in (b"one", b"two"):
        with whole_file(path) as file:
            file.write(text)
        assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_keeps_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("good")
    with pytest.raises(RuntimeError, match="half way"), whole_file(path) as file:
        file.write(b"ba")
        raise RuntimeError("half way")
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]


def test_kill_9_keeps_the_good_file_and_the_next_write_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("good")
    code = (
        "import os, signal, sys; from pathlib import Path; from sami.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'ba'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.read_text() == "good" and len(list(tmp_path.iterdir())) == 2
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
