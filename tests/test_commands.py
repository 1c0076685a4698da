"""The command line: what the commands say of themselves, and of options that they do not have."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from training_runs import CONF

from sami.commands import COMMANDS, check_choices, choices, overview, suggestions, usage

ROOT = CONF.removesuffix("/conf")


def test_the_overview_has_every_command() -> None:
    run = subprocess.run([sys.executable, "-m", "sami"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == overview()
    assert all(f"python -m sami.{name} " in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_at_least_three_examples(name: str) -> None:
    text = import_module("sami.segment").__doc__ if name == "segment" else usage(name)
    examples = re.findall(r"^    (?:python|torchrun \S+) -m sami\.(\w+)", text or "", re.MULTILINE)
    assert examples.count(name) >= 3 and len(examples) <= 4


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "segment"])
def test_help_has_what_the_command_can_run_alone(name: str) -> None:
    text = usage(name)
    for group in COMMANDS[name].groups:
        (line,) = (line for line in text.splitlines() if line.startswith(f"  {group}="))
        assert set(line.split("=", 1)[1].split()) == set(choices(name, group))


def test_help_takes_options_from_the_comments_in_conf() -> None:
    text = usage("pretrain")
    assert "  method.mask_ratio=0.75           fraction of patches hidden from the encoder\n" in text
    assert "decoder.context=all" in text  # of the file that the default builds on
    assert "${" not in text and "finetune" not in text and "masks_coco" not in text
    assert "+experiment=vit_t_small" in text and "+experiment=distill/mobile_sam" in usage("distill")


def test_help_speaks_of_the_recipe_that_is_given() -> None:
    text = usage("pretrain", ["+experiment=vit_s", "seed=3"])
    assert "  teacher=   sam_vit_h " in text and "teacher.weights=hub" in text and "num_bins" not in text
    assert "trainer.precision=bf16-mixed" in text and "data.train=???" in text


def test_help_of_the_cache_leaves_out_what_it_does_not_use() -> None:
    text = usage("cache")
    assert "cache.num_views=4" in text and "teacher.weights" in text and "finetune" not in text
    assert not any(section in text for section in ("decoder.", "method.", "schedule.", "callbacks.", "hog"))


def test_misspelt_options_name_the_nearest() -> None:
    given = ["method.masking_ratio=0.5", "shedule.epochs=3", "epochs=3", "+experiment=vit_s", "+new=1", "seed=1"]
    found = suggestions("pretrain", given)
    assert [line.split(":")[0] for line in found] == ["method.masking_ratio", "shedule.epochs", "epochs"]
    assert "did you mean method.mask_ratio" in found[0]
    assert "schedule.epochs" in found[1] and "schedule.epochs" in found[2]
    assert suggestions("finetune", ["qqq=1"]) == ["qqq: no such option of sami.finetune; --help lists the options"]
    assert not GlobalHydra.instance().is_initialized()


def test_the_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMI_RUNS", str(tmp_path))
    for arguments, code, said in (
        (["method.masking_ratio=0.5"], 1, "did you mean method.mask_ratio"),
        (["--help"], 0, "Recipes"),
        (["data=images_folder", "data.root=nowhere", "notice=null"], 2, "error: root=nowhere is not a folder"),
        (["data=images_folder", "notice=null"], 2, "error: not given, and there is no default: data.root"),
        (["--hlep"], 2, "--help lists the options"),
        (["teacher=hgo", "--help"], 2, "did you mean hog?"),
    ):
        command = [sys.executable, "-m", "sami.pretrain", *arguments]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == code and said in run.stdout + run.stderr, run.stderr


def test_a_choice_that_a_command_cannot_run_names_the_nearest() -> None:
    check_choices("pretrain", ["teacher=hog", "+experiment=vit_s", "data.train=x", "seed=1"])
    check_choices("cache", ["+experiment=vit_t_small", "teacher=timm"])
    for command, argument, said in (
        ("pretrain", "teacher=hgo", "did you mean hog"),
        ("finetune", "data=images_drawn", "did you mean masks_drawn"),
        ("finetune", "+experiment=vit_s", "choose finetune/vit_s"),
        ("pretrain", "model=mobile_sam", "choose vit_b, vit_s, vit_t"),
        ("pretrain", "experiment=vit_s", r"takes a plus, \+experiment=vit_s"),
    ):
        with pytest.raises(ValueError, match=said):
            check_choices(command, [argument])


def test_a_word_behind_sami_is_no_command() -> None:
    run = subprocess.run([sys.executable, "-m", "sami", "pretran"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "did you mean python -m sami.pretrain?" in run.stderr
