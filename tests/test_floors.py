"""Imports go down: pure functions know no network, networks know no data, nothing but commands knows Hydra."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sami"
COMMANDS = 7
FLOORS = {
    **dict.fromkeys(["ops", "files", "clock", "preemption", "cli"], 0),
    **dict.fromkeys(["losses", "models", "metrics", "data"], 1),
    **dict.fromkeys(["predict", "cache", "packing"], 2),
    "evaluation": 3,
    **dict.fromkeys(["methods", "exports"], 4),
    "callbacks": 5,
    "benchmark": 6,
    **dict.fromkeys(["__init__", "__main__", "commands", "training"], COMMANDS),
    **dict.fromkeys(["pretrain", "finetune", "distill", "pack", "segment"], COMMANDS),
}
LOWEST = {"hydra": COMMANDS, "omegaconf": COMMANDS, "timm": 1, "torchmetrics": 1, "wandb": 5}
TRAINER_FREE = {"ops", "losses", "models", "metrics", "predict", "cache", "evaluation"}  # usable without Lightning
MODULES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))


def place_of(module: str) -> tuple[str, int]:
    """(room, floor) of sami.room.file or sami.file; a package's __main__ is a command."""
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else "__init__"
    if room not in FLOORS:
        raise ValueError(f"{module}: {room} stands on no floor: give it one in tests/test_floors.py")
    return room, COMMANDS if parts[-1] == "__main__" else FLOORS[room]


def imports_of(source: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [node.module or ""]
            if node.module == "sami":
                names += [f"sami.{alias.name}" for alias in node.names]
    return names


def check(module: str, source: str) -> None:
    room, floor = place_of(module)
    for name in imports_of(source):
        if name.startswith("sami."):
            other, below = place_of(name)
            assert other == room or below < floor or floor == COMMANDS, f"{module} imports {name}"
        top = name.split(".")[0]
        if not (room == "cli" and top == "omegaconf"):  # what it turns into sentences are omegaconf's errors too
            assert floor >= LOWEST.get(top, 0), f"{module} imports {name}"
        assert not (room in TRAINER_FREE and top == "pytorch_lightning"), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    check(module, Path(PACKAGE.parent, *module.split(".")).with_suffix(".py").read_text())


def test_unknown_rooms_and_upward_imports_are_found() -> None:
    with pytest.raises(ValueError, match="exporters stands on no floor"):
        check("sami.exporters.onnx", "import torch")
    for module, source in {
        "sami.exports.onnx": "import hydra",
        "sami.models.sam": "from sami.data.decode import decode_image",
        "sami.data.loading": "from sami import training",
        "sami.predict.predictor": "import pytorch_lightning as pl",
    }.items():
        with pytest.raises(AssertionError, match="imports"):
            check(module, source)


def test_no_drawers_no_file_too_long_and_no_room_too_large() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    rooms: dict[str, int] = {}
    for path, count in lines.items():
        assert path.stem not in {"utils", "util", "helpers", "misc", "common", "core"}, path
        assert count <= 260, path
        folder = path.relative_to(PACKAGE).parts[0]
        rooms[folder] = rooms.get(folder, 0) + count
    assert max(rooms.values()) <= 0.2 * sum(lines.values()), rooms
