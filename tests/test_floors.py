"""Imports go down: pure functions know no network, networks know no data, nothing but entry points knows Hydra."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sami"
FLOORS = {
    "ops": 0,
    "clock": 0,
    "losses": 1,
    "models": 1,
    "metrics": 1,
    "data": 1,
    "predict": 2,
    "methods": 3,
    "cache": 4,
}  # what is not listed is an entry
ENTRY = 5
OF_DATA = {f"sami.cache.{name}" for name in ("records", "layout", "recipe", "manifest", "reader", "views")}
FORBIDDEN = {"hydra": ENTRY, "omegaconf": ENTRY, "timm": 1, "numpy": 1, "torchmetrics": 1, "wandb": 3}
TRAINER_FREE = {"ops", "losses", "models", "metrics", "predict"}  # what can be used without Lightning


def floor_of(module: str) -> tuple[str, int]:
    part = "data" if module in OF_DATA else module.split(".")[1] if "." in module else module
    return part, ENTRY if module.endswith(".__main__") else FLOORS.get(part, ENTRY)


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    module = "sami." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    part, floor = floor_of(module)
    for name in imports_of(path):
        if name.startswith("sami."):
            other, below = floor_of(name)
            assert other == part or below < floor or floor == ENTRY, f"{module} imports {name}"
        lowest = FORBIDDEN.get(name.split(".")[0], 0)
        assert floor >= lowest, f"{module} imports {name}"
        assert not (part in TRAINER_FREE and name.startswith("pytorch_lightning")), f"{module} imports {name}"


def test_no_drawers_and_no_file_too_long() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "misc", "common", "core"}, path
        assert len(path.read_text().splitlines()) <= 260, path
