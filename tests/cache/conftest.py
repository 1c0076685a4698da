"""A cache that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest
from caches import image_overrides, run_cache


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Images and a complete fp32 cache of two views of each; tests that change it take a copy."""
    root = tmp_path_factory.mktemp("cache")
    data = image_overrides(root)
    assert run_cache("write", [*data, f"cache.path={root}/targets"]) == 0
    return data, root / "targets"


@pytest.fixture
def copied(made: tuple[list[str], Path], tmp_path: Path) -> tuple[list[str], Path]:
    """The same images, and a copy of the cache."""
    shutil.copytree(made[1], tmp_path / "targets")
    return made[0], tmp_path / "targets"
