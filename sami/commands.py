"""The commands of sami: a line for each, `--help` made from the comments in conf/, and the door into Hydra."""

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import hydra
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sami.cli import explain_errors

CONF = Path(__file__).parents[1] / "conf"
WIDTH = 34  # columns of an option, before what it means
KEY = re.compile(r"^( *)(\w+):\s*((?:[^#\s]|(?<! )#| (?! *#))*?)\s*(?:# *(.*))?$")  # indent, key, value, comment


class Command(NamedTuple):
    """What a command is for, and the files of each group in conf/ it can run: patterns, or after ! those it cannot."""

    purpose: str
    groups: Mapping[str, str] = MappingProxyType({})


LOGGERS = {"logger": "*"}
NETWORKS = "!cached|hog|pixels|segmenter"  # teachers that are worth a cache
PRETRAINING = {
    "data": "images_*",
    "model": "vit_*",
    "decoder": "*",
    "teacher": "!segmenter",
    **LOGGERS,
}
COMMANDS = {
    "pretrain": Command("SAMI: a small ViT learns SAM's features from a quarter of the patches", PRETRAINING),
    "finetune": Command(
        "train a promptable segmenter (EfficientSAM) on images with masks",
        {"data": "masks_*", "model": "*sam*|timm", "protocol": "*"} | LOGGERS,
    ),
    "distill": Command(
        "distil SAM's image encoder into a small one (MobileSAM, RepViT-SAM)",
        {"data": "whole_*", "teacher": "!hog|pixels", "protocol": "*"} | LOGGERS,
    ),
    "cache": Command(
        "compute a teacher's targets once, to be read in every epoch: plan, write, verify",
        PRETRAINING | {"teacher": NETWORKS},
    ),
    "pack": Command("a folder of images -> webdataset shards of small JPEGs"),
    "segment": Command("masks of what you point at in an image"),
    "benchmark": Command("images/s and memory, as ratios within one run", {"model": "vit_*", "teacher": NETWORKS}),
}


def overview() -> str:
    """The commands with a line each."""
    lines = [f"  python -m sami.{name:11}{command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(["Commands (--help after any of them says more):", *lines])


def run_command(name: str, run: Callable[[DictConfig], None]) -> None:
    """Calls `run` with the configuration of the command line; `--help` prints `usage` instead.

    A user's error ends the process with 2 and a sentence, a misspelt option with 1 and the options nearest to it.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage(name))
        return

    def guarded(cfg: DictConfig) -> None:
        with explain_errors():
            run(cfg)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(guarded)()
    except SystemExit as stop:
        if stop.code == 1:  # Hydra's, for options that it does not know
            for line in suggestions(name, sys.argv[1:]):
                print(line, file=sys.stderr)
        raise


def choices(name: str, group: str) -> list[str]:
    """What `group=` may be for this command: names of files in conf/."""
    listed = COMMANDS[name].groups[group]
    patterns = listed.removeprefix("!").split("|")
    files = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [file for file in files if any(fnmatch(file, pattern) for pattern in patterns) != listed.startswith("!")]


def experiments(name: str) -> list[str]:
    """What `+experiment=` may be for this command: those of pretraining stand in the folder itself."""
    folder = CONF / "experiment"
    below = folder if name in ("pretrain", "cache") else folder / name
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in below.glob("*.yaml"))


def usage(name: str) -> str:
    """What a command does, examples, and its options as the comments in conf/ explain them."""
    spec = find_spec(f"sami.{name}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "__main__.py" if spec.submodule_search_locations else Path(spec.origin)
    lines = [source.read_text().split('"""')[1].strip().replace("\\\\", "\\"), ""]
    if found := experiments(name):
        lines.append("Recipes, each explained at the top of its file in conf/experiment/:")
        lines += [f"  +experiment={experiment}" for experiment in found] + [""]
    chosen = default_choices(name)
    if COMMANDS[name].groups:
        lines.append("Choices, the default first:")
        for group in COMMANDS[name].groups:
            names = sorted(choices(name, group), key=lambda choice: choice != chosen.get(group))
            lines.append(f"  {group}=".ljust(13) + " ".join(names))
        lines.append("")
    lines.append("Options, with their defaults (all of them: add --cfg job):")
    files = {f"{name}.yaml": "", **{f"{group}/{choice}.yaml": str(group) for group, choice in chosen.items()}}
    for file, section in files.items():
        for option, value, comment in commented(CONF / file, section):
            text = f"  {option}={value}"
            lines.append(f"{text:{WIDTH}} {comment}" if len(text) < WIDTH else f"{text}\n{'':{WIDTH}} {comment}")
    return "\n".join(lines)


def default_choices(name: str) -> dict[str, str]:
    """The file that a command takes from each group, unless told otherwise."""
    chosen: dict[str, str] = {}
    for entry in read_yaml(CONF / f"{name}.yaml").get("defaults", []):
        if isinstance(entry, dict):
            chosen |= {group: choice for group, choice in entry.items() if "/" not in group}
        elif entry != "_self_":
            chosen |= default_choices(entry)
    return chosen


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of conf/ as it stands."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def commented(path: Path, section: str) -> Iterator[tuple[str, str, str]]:
    """(dotted option, value, comment) of the keys in a YAML file that have a comment behind them."""
    text = path.read_text()
    parents = [] if "@package _global_" in text else [section] if section else []
    for base in read_yaml(path).get("defaults", []):
        if section and isinstance(base, str) and base != "_self_":
            yield from commented(path.with_name(f"{base}.yaml"), section)
    names: list[str] = []
    for line in text.splitlines():
        if match := KEY.match(line):
            indent, key, value, comment = match.groups()
            names = [*names[: len(indent) // 2], key]
            if comment and value and not value.startswith("${") and names[0] not in ("hydra", "defaults"):
                yield ".".join([*parents, *names]), value, comment


def suggestions(name: str, arguments: list[str]) -> list[str]:
    """A line for each `option=value` whose option this command does not have: the nearest ones that it has."""
    pairs = [argument.partition("=")[0] for argument in arguments if "=" in argument and argument[0] not in "+~-"]
    groups = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") in known_groups(name)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose(name, groups)
        except Exception:  # a misspelt choice, of which Hydra has listed the right ones
            cfg = compose(name)
    known = {*option_names(OmegaConf.to_container(cfg)), *known_groups(name)}
    lines = []
    for option in pairs:
        if option not in known:
            last = option.rpartition(".")[2]
            near = difflib.get_close_matches(option, known, n=3, cutoff=0.7)
            near += [other for other in sorted(known) if other.rpartition(".")[2] == last and other not in near]
            said = f"did you mean {' or '.join(near[:3])}?" if near else "--help lists the options"
            lines.append(f"{option}: no such option of sami.{name}; {said}")
    return lines


def known_groups(name: str) -> set[str]:
    """Names before `=` that choose a file of conf/."""
    return {"experiment", *COMMANDS[name].groups}


def option_names(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in a plain config."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from option_names(value, f"{prefix}{key}.")
