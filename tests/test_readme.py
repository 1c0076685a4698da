"""The README's map is the tree, and its commands name things that exist."""

import re
from pathlib import Path

from training_runs import CONF

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_map_is_the_tree() -> None:
    block = README.split("## Map")[1].split("```")[1]
    listed, folder = set(), ""
    for line in block.split("\nconf/")[0].splitlines()[2:]:
        depth = len(line) - len(line.lstrip())
        if line.split()[0].endswith("/"):
            folder = line.split()[0]
        for name in re.findall(r"\w+\.py", line):  # files of one idea share a line
            listed.add(f"{folder if depth == 4 else ''}{name}")
    there = {str(path.relative_to(ROOT / "sami")) for path in (ROOT / "sami").rglob("*.py")}
    assert listed == {path for path in there if not path.endswith("__init__.py")}


def test_conf_groups_are_listed() -> None:
    (line,) = re.findall(r"^conf/ +(.*)$", README, re.MULTILINE)
    assert set(line.split()) == {f"{path.name}/" for path in Path(CONF).iterdir() if path.is_dir()}


def test_commands_name_entries_and_choices_that_exist() -> None:
    for entry in re.findall(r"python -m sami\.(\w+)", README):
        assert any((ROOT / "sami" / name).exists() for name in (f"{entry}.py", f"{entry}/__main__.py")), entry
    for experiment in re.findall(r"\+experiment=([\w/]+)", README):
        assert Path(CONF, "experiment", f"{experiment}.yaml").exists(), experiment
    for script in re.findall(r"`(jobs/[\w.]+)", README):
        assert (ROOT / script).exists(), script


def test_short_and_soon_useful() -> None:
    lines = README.splitlines()
    assert len(lines) <= 340  # one page for each stage
    assert next(number for number, line in enumerate(lines) if "python -m sami" in line) < 25
