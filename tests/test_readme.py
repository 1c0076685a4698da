"""The README and the guides name what exists: rooms, files, commands, options and choices."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from training_runs import CONF

from sami.commands import COMMANDS, choices, option_names

ROOT = Path(CONF).parent
GUIDES = [
    path for pattern in ("README.md", "*/README.md", "*/*/README.md", ".github/*.md") for path in ROOT.glob(pattern)
]
README = (ROOT / "README.md").read_text()


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """(command, its options) of every call of sami in code blocks, lines that go on joined."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if call := re.search(r"(?:-m sami\.(\w+)|jobs/torchrun\.sh \d+ (\w+))(.*)", line.partition(" #")[0]):
                found.append((call[1] or call[2], call[3].split()))
    return found


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for command, arguments in commands_in(text):
        assert command in COMMANDS, command
        if command == "segment":
            continue
        with initialize_config_dir(CONF, version_base="1.3"):
            known = set(option_names(OmegaConf.to_container(compose(command))))
        for argument in arguments:
            key, sign, value = argument.strip("'").partition("=")
            if key == "+experiment":
                assert Path(CONF, "experiment", f"{value}.yaml").exists(), argument
            elif key in COMMANDS[command].groups:
                assert value in choices(command, key), argument
            elif sign and key.split(".")[0] not in ("data", "teacher", "model"):  # whose keys depend on the choice
                assert key in known, argument
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (path.parent / link).exists(), link
        if link.endswith(".png"):
            with Image.open(path.parent / link) as picture:
                picture.load()
    for name in re.findall(r"`((?:sami|conf|jobs|tests)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_guides_imports_what_exists(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
        for node in imports:
            assert all(hasattr(import_module(node.module or ""), name.name) for name in node.names), ast.unparse(node)


def test_the_map_has_every_room() -> None:
    block = README.split("## Map")[1].split("```")[1]
    rooms = {path.name for path in (ROOT / "sami").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert rooms <= set(re.findall(r"(\w+)/", block)), rooms
    files = {path.stem for path in (ROOT / "sami").glob("*.py")} - {"__init__", "__main__"}
    assert files <= set(re.findall(r"\w+", block)), files


def test_short_and_soon_useful() -> None:
    lines = README.splitlines()
    assert len(lines) <= 160
    assert next(number for number, line in enumerate(lines) if "-m sami" in line) < 30
