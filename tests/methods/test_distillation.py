"""The distillation step on real networks, small."""

from functools import partial
from typing import Any

import pytest
import torch
from masked_images import write_sa1b_folder
from steps import losses_while_learning
from torch import Tensor

from sami.data.distillation import WholeImageData
from sami.evaluation.teacher_agreement import TeacherAgreement, place_prompts, to_tokens
from sami.methods.distillation import Distillation
from sami.methods.prompt_protocols import SamProtocol
from sami.methods.schedule import Schedule
from sami.methods.students import start_students
from sami.methods.target_statistics import ContentStatistics
from sami.models.build import build_sam
from sami.models.teachers import SegmenterTeacher, TimmTeacher

START = {
    **{"names": ["vit_t"], "init": {}, "decoder_checkpoint": None, "image_size": 64, "resize_mode": "pad"},
    "drop_path": 0.0,
}
OPTIONS = {
    **{
        "loss_distance": "mse",
        "loss_tokens": "content",
        "feature_weight": 1.0,
        "mask_weight": 0.0,
        "train_decoder": False,
    },
    **{"focal_weight": 20.0, "dice_weight": 1.0, "iou_weight": 1.0, "weight_decay": 0.01, "betas": (0.9, 0.999)},
    "checkpoint_activations": False,
}
SMALL = "timm/test_resnet"


@pytest.fixture(scope="module")
def teacher() -> SegmenterTeacher:
    return SegmenterTeacher("timm/test_vit", None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WholeImageData:
    folder = str(write_sa1b_folder(tmp_path_factory.mktemp("images"), 6))
    options = {"image_size": 64, "resize_mode": "pad", "num_prompts": 4, "num_val_masks": 3, "seed": 0}
    options |= {"num_workers": 0, "shuffle_window": 1, "cache": None, "val_batch_size": 4}
    data = WholeImageData(folder, folder, **options)
    data.setup_stream(batch_size=2, epoch_size=6, num_batches=3)
    return data


def batch_of(data: WholeImageData, positions: list[int] = (0, 1, 2, 3)) -> dict[str, Tensor]:
    return data.on_after_batch_transfer(data.train_set().__getitems__(list(positions)), 0)


def build(teacher: SegmenterTeacher, *, names: list[str] = (SMALL,), **options: Any) -> Distillation:
    torch.manual_seed(0)
    start = partial(start_students, **{**START, "names": list(names)})
    protocol = SamProtocol(num_clicks=0, num_refinements=0)
    method = Distillation(start, teacher, protocol, **{**OPTIONS, **options})
    method.watch = lambda losses, batch_idx: None
    return method


def gradients(method: Distillation, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    method.zero_grad()
    method.training_step(batch, 0).backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def test_a_student_that_is_the_teacher_has_no_loss_and_its_masks(teacher, data) -> None:
    """Every number of validation at its best: 0, 1, and mIoU with the teacher's masks 1."""
    method = build(teacher, names=["timm/test_vit"]).eval()
    (student,) = method.students.values()
    student.image_encoder.load_state_dict(teacher.sam.image_encoder.state_dict())
    batch = data.on_after_batch_transfer(data.val_set("").__getitems__([0, 1, 2]), 0)
    scores = TeacherAgreement(list(method.students), 256, torch.device("cpu"), with_teacher=True)
    with torch.no_grad():
        output = method.teacher_output(batch)
        scores.update(method.students, batch, output, teacher_decoder=method.teacher_decoder, loss=method.feature_loss)
    numbers = scores.compute()
    (own,) = (numbers[name] for name in method.students)
    assert own["loss"] < 1e-9 and own["cosine"] > 0.99999 and own["explained_variance"] > 0.99999
    assert own["teacher_point"] > 0.999 and own["teacher_box"] > 0.999
    assert {kind: float(own[kind]) for kind in ("box", "click_1")} == pytest.approx(
        {kind: float(numbers["of_teacher"][kind]) for kind in ("box", "click_1")}, abs=1e-4
    )


def test_padding_teaches_nothing(teacher, data) -> None:
    """Another answer of the teacher in the padding changes no gradient, one in the image does."""
    method, batch = build(teacher), batch_of(data)
    expected = gradients(method, batch)
    output = method.teacher_output(batch)
    assert 0 < output.token_valid.float().mean() < 1
    spoilt = output.target.masked_fill(~output.token_valid.unsqueeze(-1), torch.inf)
    method.teacher_output = lambda batch: output._replace(target=spoilt)
    torch.testing.assert_close(gradients(method, batch), expected)
    method.teacher_output = lambda batch: output._replace(target=output.target + 1)
    assert not torch.allclose(next(iter(gradients(method, batch).values())), next(iter(expected.values())))
    method.loss_tokens = "all"
    method.teacher_output = lambda batch: output._replace(
        target=output.target.masked_fill(~output.token_valid.unsqueeze(-1), 9.0)
    )
    assert not torch.allclose(next(iter(gradients(method, batch).values())), next(iter(expected.values())))


def test_the_teacher_is_neither_saved_nor_trained_and_the_decoder_stays(teacher, data) -> None:
    method = build(teacher)
    assert all(name.startswith("students.timm_test_resnet.") for name in method.state_dict())
    assert all(".image_encoder." in name for name in gradients(method, batch_of(data)))
    (student,) = method.students.values()
    for part in ("prompt_encoder", "mask_decoder"):
        torch.testing.assert_close(getattr(student, part).state_dict(), getattr(teacher.sam, part).state_dict())
        assert not getattr(student, part).training and student.image_encoder.training


def test_students_share_the_teachers_output_and_nothing_else(teacher, data) -> None:
    """Two at once get the gradients that each gets alone, from one look of the teacher."""
    both = build(teacher, names=[SMALL, "timm/test_vit"])
    looks = []
    original, teacher.target = teacher.target, lambda image: looks.append(1) or original(image)
    together = gradients(both, batch_of(data))
    teacher.target = original
    assert len(looks) == 1
    for label in ("timm_test_resnet", "timm_test_vit"):
        alone = build(teacher, names=[label.replace("_", "/", 1)])
        alone.students.load_state_dict({n: v for n, v in both.students.state_dict().items() if n.startswith(label)})
        for name, gradient in gradients(alone, batch_of(data)).items():
            torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-7)


def test_each_student_has_optimiser_groups_of_its_own(teacher, data) -> None:
    method = build(teacher, names=[SMALL, "timm/test_vit"])
    schedule = Schedule(epochs=1, warmup_epochs=0, base_lr=0.256, global_batch_size=2, batch_size=2)
    method.configure(schedule.resolve(num_images=6, world_size=1))
    groups = method.configure_optimizers()["optimizer"].param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert rates.pop(id(parameter)) == pytest.approx(0.002), name
    assert not rates


@pytest.mark.parametrize("train_decoder", [False, True])
def test_mask_loss_through_a_decoder_that_is_frozen_or_learns(teacher, data, train_decoder: bool) -> None:
    method = build(teacher, feature_weight=0.0, mask_weight=1.0, train_decoder=train_decoder)
    batch = batch_of(data)
    output = method.teacher_output(batch)
    assert output.masks.shape == (4, 4, 16, 16) and output.masks.any()
    assert not output.masks[:, :, 12:].any()  # images of 48 x 64: nothing in the padding
    found = gradients(method, batch)
    moved = {name.split(".")[2] for name, gradient in found.items() if gradient.any()}
    assert moved >= {"image_encoder"} and ("mask_decoder" in moved) == train_decoder
    coords, labels = place_prompts(batch["noise"][..., -2:], batch["input_size"])
    assert (coords[..., 1] < 48).all() and (coords[..., 0] < 64).all() and (labels == 1).all()
    if train_decoder:
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_standardised_loss_is_in_units_of_each_channels_spread(teacher, data) -> None:
    method = build(teacher, loss_distance="standardized_mse")
    assert isinstance(method.statistics, ContentStatistics)
    method.statistics.measure(data, teacher, device=torch.device("cpu"))
    output = method.teacher_output(batch_of(data, list(range(6))))
    target = output.target[output.token_valid]
    torch.testing.assert_close(method.statistics.mean, target.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(method.statistics.std, target.std(0, correction=0), rtol=1e-3, atol=1e-4)
    constant = method.statistics.mean.expand_as(output.target)  # whoever says the mean is off by one spread
    assert method.feature_loss(constant, output).item() == pytest.approx(1, rel=0.05)


def test_a_student_learns(teacher, data) -> None:
    method, batch = build(teacher), batch_of(data)
    losses = losses_while_learning(method, batch, steps=25, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]
    prediction = to_tokens(next(iter(method.students.values())).embed(batch["image"]))
    assert prediction.shape == method.teacher_output(batch).target.shape


def test_what_students_can_be(teacher, tmp_path) -> None:
    students, decoder = start_students(teacher, **{**START, "names": ["tiny_vit_5m", "repvit_m1_1"]})
    assert [student.name for student in students.values()] == ["mobile_sam", "repvit_sam_m1_1"]
    assert all((student.image_size, student.resize_mode) == (64, "pad") for student in students.values())
    other = build_sam("timm/test_resnet")
    torch.save(other.state_dict(), tmp_path / "sam.pth")
    _, decoder = start_students(teacher, **{**START, "names": [SMALL], "decoder_checkpoint": str(tmp_path / "sam.pth")})
    torch.testing.assert_close(decoder.mask_decoder.state_dict(), other.mask_decoder.state_dict())
    mistakes = {
        "name each student once": {"names": []},
        "only those in init": {"names": [SMALL], "init": {"vit_s": "x"}},
        r"choose from tiny_vit_5m": {"names": ["tinyvit"]},
    }
    for message, options in mistakes.items():
        with pytest.raises(ValueError, match=message):
            start_students(teacher, **{**START, **options})
    with pytest.raises(ValueError, match="64 channels"):
        start_students(TimmTeacher("test_vit", "random"), **START)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_weight": 0.0}, "give one of them"),
        ({"train_decoder": True}, "needs mask_weight"),
        ({"loss_distance": "l1"}, "loss_distance='l1'"),
        ({"loss_tokens": "masked"}, "loss_tokens='masked'"),
    ],
)
def test_settings_that_make_no_sense(teacher, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(teacher, **options)
