"""Settings that a continued run has to share with its checkpoint (that it continues bit for bit: test_resume.py)."""

from pathlib import Path

import pytest
from conftest import write_folder
from hydra.utils import instantiate
from masked_images import write_sa1b_folder
from omegaconf import DictConfig, ListConfig, OmegaConf
from training_runs import CONF, TINY, compose_config, explain

from sami.cli import flatten
from sami.evaluation.prompted import MEASURED_ON
from sami.methods.base import Method
from sami.methods.distillation import Distillation
from sami.methods.finetuning import SegmenterFinetuning
from sami.methods.pretraining import SAMIPretraining

METHODS = {"pretrain": SAMIPretraining, "finetune": SegmenterFinetuning, "distill": Distillation}


def names_in(cfg: DictConfig | ListConfig) -> set[str]:
    """Dotted names of all keys, sections among them."""
    names = set()

    def walk(node: object, name: str) -> None:
        names.add(name)
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{name}.{key}".lstrip("."))

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return names


@pytest.mark.parametrize("command", METHODS)
def test_what_may_differ_is_a_setting_of_the_command(command: str) -> None:
    """A setting that gets another name would become part of the contract in silence."""
    names = names_in(compose_config([], name=command))
    for path in (*Path(CONF, "data").glob("*.yaml"), *Path(CONF, "teacher").glob("*.yaml")):
        own = names_in(OmegaConf.load(path))
        names |= own if "_global_" in path.read_text() else {f"{path.parent.name}.{name}" for name in own}
    unknown = METHODS[command].free_settings - names
    assert not unknown, f"sami.{command} has no setting {sorted(unknown)}: it was renamed, or is gone"


def test_contract_has_every_other_setting_and_names_of_classes(tmp_path: Path) -> None:
    cfg = compose_config([*TINY, "data=images_folder", f"data.root={write_folder(tmp_path / 'images', 9)}"])
    data, method = instantiate(cfg.data), instantiate(cfg.method)
    assert isinstance(method, Method)
    contract = method.contract(flatten(cfg, without=method.free_settings), data)
    assert contract["method._target_"] == "SAMIPretraining" and contract["method.mask_ratio"] == 0.75
    assert contract["images"] == data.train_source.fingerprint
    assert not contract.keys() & {"name", "trainer.devices", "data.root", "method.teacher.name", "notice"}


def test_fine_tuning_says_what_its_numbers_are_measured_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_sa1b_folder(tmp_path / "images", 4)
    too_many = [f"data.train={data}", f"run_dir={tmp_path}/run", "schedule.global_batch_size=99"]
    assert MEASURED_ON not in explain("finetune", too_many, capsys)
    assert MEASURED_ON in explain("finetune", [*too_many, f"data.val={data}"], capsys)
