"""What a cache will cost is said before anything is written."""

import subprocess
import sys
from pathlib import Path

from caches import cache_says


def test_an_estimate_measures_every_format_and_writes_nothing(made: tuple[list[str], Path], tmp_path: Path) -> None:
    code, said = cache_says("plan", [*made[0], f"cache.path={tmp_path}/planned", "cache.channels=8"], tmp_path)
    assert code == 0 and not (tmp_path / "planned").exists()
    rows = [line.split() for line in said.splitlines() if line.split()[:1] in (["fp32"], ["fp16"], ["int8"])]
    assert [row[:2] for row in rows] == [["fp32", "64"], ["fp16", "64"], ["int8", "64"], ["fp32", "8"], ["int8", "32"]]
    assert [row[:2] for row in rows if row[-1] == "chosen"] == [["fp32", "8"]]
    assert f"{2 * 27 + 5} targets of 2x2x64: 2 views of each" in said and "are still to be written" in said


def test_commands_are_explained() -> None:
    result = subprocess.run([sys.executable, "-m", "sami.cache", "wirte"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "python -m sami.cache plan|write|verify ...: wirte given" in result.stderr
