"""The configuration composes, and its keys are exactly the arguments of what it builds."""

import inspect
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf
from training_runs import CONF, compose_config

from sami.commands import COMMANDS, choices
from sami.data.loading import ImageData
from sami.models.build import MODELS

EXPERIMENTS = [
    str(path.relative_to(f"{CONF}/experiment").with_suffix("")) for path in Path(CONF).rglob("experiment/**/*.yaml")
]
CHOICES = [
    (command, f"{group}={choice}")
    for command in COMMANDS
    for group in COMMANDS[command].groups
    for choice in choices(command, group)
]
SHARDS = "data.train=shards"
DATA = {"vit_t_small": "data.root=images"}  # what an experiment needs besides its name, where it is not shards


def targets(node: object) -> list[dict]:
    if isinstance(node, dict):
        return [
            *([node] if "_target_" in node else []),
            *(found for value in node.values() for found in targets(value)),
        ]
    return []


def check_signatures(cfg: DictConfig) -> None:
    plain = OmegaConf.to_container(cfg, resolve=False)
    found = targets({name: value for name, value in plain.items() if name != "hydra"})
    assert found
    for node in found:
        name = node["_target_"]
        target = get_class(name) if name.rpartition(".")[2][0].isupper() else get_method(name)
        parameters = dict(inspect.signature(target).parameters)
        if inspect.isclass(target) and issubclass(target, ImageData):  # whose keyword arguments pass through `loading`
            del parameters["loading"]
            shared = inspect.signature(ImageData).parameters
            parameters |= {n: p for n, p in shared.items() if p.kind is p.KEYWORD_ONLY}
        keys = {key for key in node if not key.startswith("_")}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            assert keys <= parameters.keys(), f"{name}: {keys - parameters.keys()} is no argument of it"
        if not node.get("_partial_"):
            required = {
                n
                for n, p in parameters.items()
                if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            }
            assert required <= keys, f"{name}: {required - keys} is missing"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose(experiment: str) -> None:
    entry = experiment.rpartition("/")[0] or "pretrain"
    cfg = compose_config([f"+experiment={experiment}", DATA.get(experiment, SHARDS)], name=entry)
    check_signatures(cfg)
    assert cfg.name == experiment.replace("/", "_") and cfg.notice is None


@pytest.mark.parametrize(("command", "choice"), CHOICES)
def test_what_a_command_can_run_composes(command: str, choice: str) -> None:
    check_signatures(compose_config([choice], name=command))


def test_data_is_that_of_the_command() -> None:
    for command, stage in {"pretrain": "pretraining", "finetune": "finetuning", "distill": "distillation"}.items():
        for choice in choices(command, "data"):
            assert compose_config([f"data={choice}"], name=command).data._target_.startswith(f"sami.data.{stage}.")


def test_a_timm_backbone_has_to_be_named() -> None:
    assert OmegaConf.is_missing(compose_config(["model=timm"], name="finetune").model, "name")


def test_every_file_is_something_that_a_command_can_run() -> None:
    listed = {choice for _, choice in CHOICES} | {"trainer=default", "callbacks=default"}
    there = {f"{path.parent.name}={path.stem}" for path in Path(CONF).glob("*/*.yaml")}
    assert {name for name in there if not name.startswith("experiment=")} == listed


def test_segmenters_are_resized_for_as_they_were_released() -> None:
    for name in choices("finetune", "model"):
        model = compose_config(
            [f"model={name}", *(["model.name=timm/x"] if name == "timm" else [])], name="finetune"
        ).model
        assert model.resize_mode == ("stretch" if name == "timm" else MODELS[name][0])


def test_the_papers_recipe() -> None:
    """arXiv:2312.00863, Sec. 4.1."""
    cfg = compose_config(["+experiment=vit_s", SHARDS])
    assert cfg.schedule.base_lr * cfg.schedule.global_batch_size / 256 == pytest.approx(2.4e-3)
    assert (cfg.schedule.epochs, cfg.schedule.warmup_epochs, cfg.schedule.global_batch_size) == (400, 40, 4096)
    assert (cfg.method.betas, cfg.method.weight_decay, cfg.method.mask_ratio) == ([0.9, 0.95], 0.05, 0.75)
    assert (cfg.decoder.depth, cfg.decoder.width, cfg.model.image_size, cfg.teacher.name) == (8, 512, 224, "sam_vit_h")
    assert (cfg.method.loss_tokens, cfg.method.loss_distance, cfg.data.flip) == ("all", "mse", 0.5)


def test_the_papers_recipe_of_fine_tuning() -> None:
    """arXiv:2312.00863, Sec. 4.1, and arXiv:2304.02643, App. A, for what "following SAM" stands for."""
    cfg = compose_config(["+experiment=finetune/vit_s", SHARDS], name="finetune")
    assert cfg.schedule.base_lr * cfg.schedule.global_batch_size / 256 == pytest.approx(4e-4)
    assert (cfg.schedule.epochs, cfg.schedule.global_batch_size) == (5, 128)
    assert (cfg.method.betas, cfg.method.weight_decay, len(cfg.method.train_parts)) == ([0.9, 0.999], 0.1, 3)
    assert (cfg.model.name, cfg.model.image_size, cfg.model.decoder) == ("efficient_sam_vits", 1024, "sam")
    assert (cfg.method.focal_weight, cfg.method.dice_weight, cfg.method.iou_weight) == (20, 1, 1)
    assert 1 + cfg.protocol.num_clicks + cfg.protocol.num_refinements == 11
    assert (cfg.protocol.box_noise, cfg.protocol.max_box_noise * 1024) == (0.1, 20)
    assert (cfg.data.max_area, cfg.data.flip, cfg.data.mask_size) == (0.9, 0, None)


def test_the_papers_recipe_of_distillation() -> None:
    """arXiv:2306.14289, Sec. 4.1 and Table 4: 8 epochs, batch 8, MSE on the embedding of 1024 pixels, no more."""
    for experiment, student in (("mobile_sam", "tiny_vit_5m"), ("repvit_sam", "repvit_m2_3")):
        cfg = compose_config([f"+experiment=distill/{experiment}", SHARDS, "teacher.path=cache"], name="distill")
        assert (cfg.schedule.epochs, cfg.schedule.global_batch_size, list(cfg.students)) == (8, 8, [student])
        assert (cfg.model.image_size, cfg.model.resize_mode, cfg.data.cache.folder) == (1024, "pad", "cache")
        assert (cfg.method.loss_distance, cfg.method.feature_weight, cfg.method.mask_weight) == ("mse", 1, 0)
        assert OmegaConf.is_missing(cfg, "decoder_checkpoint")


def test_clicks_of_short_runs_are_numbers_that_another_protocol_leaves_alone() -> None:
    for entry, expected in (("finetune", (2, 0)), ("distill", (0, 0))):
        protocol = compose_config([], name=entry).protocol
        assert (protocol.num_clicks, protocol.num_refinements) == expected
    for experiment in ("vit_t_small", "vit_s"):
        cfg = compose_config([f"+experiment=finetune/{experiment}", SHARDS, "protocol=points"], name="finetune")
        check_signatures(cfg)
        assert "num_clicks" not in cfg.protocol


def test_a_target_made_of_pixels_is_learned_where_it_is_hidden() -> None:
    for teacher, tokens in (("hog", "masked"), ("pixels", "masked"), ("sam_vit_b", "all")):
        assert compose_config([f"teacher={teacher}"]).method.loss_tokens == tokens


def test_misspelt_key_and_missing_plus() -> None:
    with pytest.raises(ConfigCompositionException, match="masking_ratio"):
        compose_config(["method.masking_ratio=0.5"])
    with pytest.raises(ConfigCompositionException, match=r"\+experiment=vit_s"):
        compose_config(["experiment=vit_s"])
