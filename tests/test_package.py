"""What `import sami` gives."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import sami

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = project["project"]["version"]
    (tmp_path / "sami-0.dist-info").mkdir()
    (tmp_path / "sami-0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sami\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert sami.__version__ == version
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        sami.version  # noqa: B018


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(AttributeError, match="pip install -e"):
        sami.__version__  # noqa: B018


def test_the_readme_names_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"version = {{{project['project']['version']}}}" in (ROOT / "README.md").read_text()


def test_types_are_for_others_to_check() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["sami"] == ["py.typed"]
    assert (ROOT / "sami" / "py.typed").read_bytes() == b""


def test_importing_it_is_fast_and_public_names_are_there() -> None:
    code = "import sami, sys; assert not {'torch', 'timm'} & set(sys.modules); [getattr(sami, n) for n in sami.__all__]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
