"""The commands of sami: a line for each, `--help` made from the comments in conf/, and the door into Hydra."""

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
KEY = re.compile(r"^( *)(\w+):(?:\s.*?)??(?:\s+# *(.*))?$")  # indent, key, comment


class Command(NamedTuple):
    """What a command is for, and the files of each group in conf/ it can run: patterns, or after ! those it cannot."""

    purpose: str
    groups: Mapping[str, str] = MappingProxyType({})
    recipes: str = ""  # of conf/experiment/
    unused: tuple[str, ...] = ()  # beginnings of options that its configuration has for others


LOGGERS = {"logger": "*"}
NETWORKS = "!cached|hog|pixels"  # teachers that are worth a cache
PRETRAINING = {"data": "images_*", "model": "vit_*", "decoder": "*", "teacher": "!segmenter", **LOGGERS}
COMMANDS = {
    "pretrain": Command("SAMI: a small ViT learns SAM's features from a quarter of the patches", PRETRAINING, "vit_*"),
    "finetune": Command(
        "train a promptable segmenter (EfficientSAM) on images with masks",
        {"data": "masks_*", "model": "*sam*|timm", "protocol": "*", **LOGGERS},
        "finetune/*",
    ),
    "distill": Command(
        "distil SAM's image encoder into a small one (MobileSAM, RepViT-SAM)",
        {"data": "whole_*", "teacher": "!hog|pixels", "protocol": "*", **LOGGERS},
        "distill/*",
    ),
    "cache": Command(
        "compute a teacher's targets once, to be read in every epoch: plan, write, verify",
        {"data": "images_*", "model": "vit_*", "teacher": NETWORKS},
        "vit_*",
        ("decoder", "method", "schedule", "callbacks", "name", "validate", "checkpoint", "model.pos_", "trainer.strat"),
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
    arguments, entered = sys.argv[1:], False
    with explain_errors():
        check_choices(name, arguments)
    if {"-h", "--help"} & set(arguments):
        print(usage(name, arguments))
        return

    def guarded(cfg: DictConfig) -> None:
        nonlocal entered
        entered = True
        with explain_errors():
            run(cfg)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(guarded)()
    except SystemExit as stop:
        if stop.code and not entered:  # Hydra's own, for what it does not know
            print("\n".join(suggestions(name, arguments) or ["--help lists the options"]), file=sys.stderr)
        raise


def choices(name: str, group: str) -> list[str]:
    """What `group=` may be for this command: names of files in conf/."""
    listed = COMMANDS[name].groups[group]
    patterns = listed.removeprefix("!").split("|")
    files = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [file for file in files if any(fnmatch(file, pattern) for pattern in patterns) != listed.startswith("!")]


def experiments(name: str) -> list[str]:
    """What `+experiment=` may be for this command: names of files below conf/experiment/."""
    folder = CONF / "experiment"
    found = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    pattern = COMMANDS[name].recipes
    return [recipe for recipe in found if fnmatch(recipe, pattern) and recipe.count("/") == pattern.count("/")]


def check_choices(name: str, arguments: list[str]) -> None:
    """Raises ValueError where a group's file or a recipe is none that this command can run, and names the nearest."""
    for argument in arguments:
        group, _, value = argument.partition("=")
        if group == "experiment":
            raise ValueError(f"{argument}: a recipe takes a plus, +{argument}")
        can = experiments(name) if group == "+experiment" else []
        if group in COMMANDS[name].groups:
            can = choices(name, group)
        if can and value not in can:
            near = difflib.get_close_matches(value, can, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"sami.{name} cannot run {argument}{hint}: choose {', '.join(can)}")


def usage(name: str, arguments: Sequence[str] = ()) -> str:
    """What a command does, examples, and its options as the comments in conf/ explain them.

    Args:
        name: of the command.
        arguments: groups and recipes among them are taken, others left aside.
    """
    spec = find_spec(f"sami.{name}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "__main__.py" if spec.submodule_search_locations else Path(spec.origin)
    lines = [source.read_text().split('"""')[1].strip().replace("\\\\", "\\"), ""]
    if found := experiments(name):
        lines.append("Recipes, each explained at the top of its file in conf/experiment/:")
        lines += [f"  +experiment={experiment}" for experiment in found] + [""]
    cfg, chosen = compose_groups(name, arguments)
    if COMMANDS[name].groups:
        lines.append("Choices, the one in force first:")
        for group in COMMANDS[name].groups:
            names = sorted(choices(name, group), key=lambda choice: choice != chosen.get(group))
            lines.append(f"  {group}=".ljust(13) + " ".join(names))
        lines.append("")
    lines.append("Options, with their values (all of them: add --cfg job):")
    comments: dict[str, str] = {}
    for file, section in [(name, ""), *((f"{group}/{choice}", group) for group, choice in chosen.items())]:
        comments |= {
            option: said for option, said in commented(CONF / f"{file}.yaml", section) if option not in comments
        }
    for option, said in comments.items():
        value = plain_value(cfg, option)
        if value is not None and not value.startswith("${") and not option.startswith(COMMANDS[name].unused):
            text = f"  {option}={value}"
            lines.append(f"{text:{WIDTH}} {said}" if len(text) < WIDTH else f"{text}\n{'':{WIDTH}} {said}")
    return "\n".join(lines)


def compose_groups(name: str, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A command's plain configuration with the groups and recipes among these arguments, and the file of each group."""
    known = {"+experiment", *COMMANDS[name].groups}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, [one for one in arguments if one.partition("=")[0] in known], return_hydra_config=True)
    chosen = {group: choice for group, choice in cfg.hydra.runtime.choices.items() if (CONF / group).is_dir()}
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    plain = {str(key): value for key, value in content.items() if key != "hydra"}
    return plain, {group: choice for group, choice in chosen.items() if group != "experiment"}


def plain_value(cfg: dict[str, Any], option: str) -> str | None:
    """A dotted option's value as one would write it on the command line; None where there is no such option now."""
    node: Any = cfg
    for part in option.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    if isinstance(node, dict):
        return None
    return "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node)


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of conf/ as it stands."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def commented(path: Path, section: str) -> Iterator[tuple[str, str]]:
    """(dotted option, comment) of the keys in a YAML file, or those it builds on, that have a comment behind them."""
    text = path.read_text()
    parents = [] if "@package _global_" in text else [section] if section else []
    for base in read_yaml(path).get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            yield from commented(path.with_name(f"{base}.yaml"), section)
    names: list[str] = []
    for line in text.splitlines():
        if match := KEY.match(line):
            indent, key, comment = match.groups()
            names = [*names[: len(indent) // 2], key]
            if comment:
                yield ".".join([*parents, *names]), comment


def suggestions(name: str, arguments: list[str]) -> list[str]:
    """A line for each `option=value` whose option this command does not have: the nearest ones that it has."""
    pairs = [argument.partition("=")[0] for argument in arguments if "=" in argument and argument[0] not in "+~-"]
    known = {*option_names(compose_groups(name, arguments)[0]), "experiment", *COMMANDS[name].groups}
    lines = []
    for option in pairs:
        if option not in known:
            last = option.rpartition(".")[2]
            near = difflib.get_close_matches(option, known, n=3, cutoff=0.7)
            near += [other for other in sorted(known) if other.rpartition(".")[2] == last and other not in near]
            said = f"did you mean {' or '.join(near[:3])}?" if near else "--help lists the options"
            lines.append(f"{option}: no such option of sami.{name}; {said}")
    return lines


def option_names(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything in a plain config."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from option_names(value, f"{prefix}{key}.")
