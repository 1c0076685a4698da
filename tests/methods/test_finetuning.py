"""The fine-tuning step on the real network, small."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from masked_images import write_sa1b_folder
from steps import losses_while_learning
from torch import Tensor, nn

from sami.data.crops import normalize
from sami.data.finetuning import FinetuningData
from sami.evaluation.prompted import MaskScores
from sami.methods.finetuning import SegmenterFinetuning, cut_out
from sami.methods.optimizer import layer_number, parameter_groups
from sami.methods.prompt_protocols import PointsProtocol, SamProtocol
from sami.methods.schedule import Schedule, lr_factor
from sami.models.build import build_sam
from sami.models.sam import Sam
from sami.ops.boxes import mask_to_box
from sami.ops.frames import longest_side_frame, stretch_frame
from sami.ops.prompts import BACKGROUND

OPTIONS = {
    "train_parts": ["image_encoder", "prompt_encoder", "mask_decoder"],
    **{"focal_weight": 20.0, "dice_weight": 1.0, "iou_weight": 1.0, "weight_decay": 0.1, "betas": (0.9, 0.999)},
    **{"layer_decay": 1.0, "checkpoint_activations": False},
}


def build(decoder: str = "sam", *, drop_path: float = 0.0, protocol: object = None, **options: Any):
    """A method on 32 pixels with a silent logger."""
    torch.manual_seed(0)
    model = build_sam("efficient_sam_vitt", image_size=32, decoder=decoder, drop_path=drop_path)
    protocol = protocol or SamProtocol(num_clicks=1, num_refinements=1)
    method = SegmenterFinetuning(model, protocol, **{**OPTIONS, **options})
    method.watch = lambda losses, batch_idx: None
    return method


def data_of(tmp_path) -> FinetuningData:
    folder = str(write_sa1b_folder(tmp_path / "images", 8))
    options = {"image_size": 32, "mask_size": 16, "resize_mode": "stretch", "num_masks": 3, "num_val_masks": 3}
    options |= {"max_area": 0.9, "flip": 0.0, "scale": (1.0, 1.0)}
    options |= {"seed": 0, "num_workers": 0, "shuffle_window": 1, "val_batch_size": 2}
    data = FinetuningData(folder, folder, **options)
    data.setup_stream(batch_size=4, epoch_size=8, num_batches=2)
    return data


def batch_of(tmp_path) -> dict[str, Tensor]:
    data = data_of(tmp_path)
    return data.on_after_batch_transfer(data.train_set().__getitems__([0, 1, 2, 3]), 0)


def gradients(method, batch) -> dict[str, Tensor]:
    method.zero_grad()
    method.training_step(batch, 0).backward()
    return {name: p.grad.clone() for name, p in method.model.named_parameters() if p.grad is not None}


def test_the_loss_of_a_batch_is_the_mean_of_its_images_losses(tmp_path) -> None:
    """Images with different numbers of masks, padded together: accumulating them one by one gives the same step."""
    method, batch = build(), batch_of(tmp_path)
    assert batch["object_valid"].sum(1).unique().numel() > 1
    whole = gradients(method, batch)
    alone = [gradients(method, {k: v[i : i + 1] for k, v in batch.items() if k != "broken"}) for i in range(4)]
    for name, gradient in whole.items():
        mean = torch.stack([one[name] for one in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-2, atol=1e-4 * float(mean.abs().max()) + 1e-7, msg=name)


def test_boxes_are_those_of_the_pixels(tmp_path, monkeypatch) -> None:
    """As in validation; those of the masks' cells are up to a cell tighter or wider."""
    protocol = SamProtocol(num_clicks=0, num_refinements=0, box_noise=0.0, box_chance=1.0)
    method, batch, asked = build(protocol=protocol), batch_of(tmp_path), []
    decode = Sam.decode
    monkeypatch.setattr(Sam, "decode", lambda *given, **options: asked.append(given[2]) or decode(*given, **options))
    method.training_step(batch, 0)
    (coords,), valid = asked, batch["object_valid"]
    torch.testing.assert_close(coords[valid].flatten(1), 2 * batch["boxes"][valid])  # 32 pixels, 16 cells
    assert not torch.equal(batch["boxes"][valid], mask_to_box(batch["masks"])[valid])


def test_a_step_learns(tmp_path) -> None:
    method, batch = build(), batch_of(tmp_path)
    losses = losses_while_learning(method, batch, steps=12, lr=1e-3)
    assert losses[-1] < 0.7 * losses[0]


def test_every_trained_parameter_has_a_gradient_and_frozen_ones_stay(tmp_path) -> None:
    batch = batch_of(tmp_path)
    once = {"sam": SamProtocol(num_clicks=0, num_refinements=0), "efficient_sam": PointsProtocol(max_points=3)}
    for decoder, protocol in once.items():
        grads = gradients(build(decoder, protocol=protocol), batch)
        assert len(grads) == len(dict(build(decoder, protocol=protocol).model.named_parameters()))
    method = build(train_parts=["mask_decoder"], drop_path=0.5)
    method.train()
    assert not method.model.image_encoder.training and method.model.mask_decoder.training
    grads = gradients(method, batch)
    assert grads and all(name.startswith("mask_decoder") for name in grads)
    grads = gradients(build(train_parts=["neck"]), batch)
    neck = build().model.image_encoder.neck
    assert grads.keys() == {f"image_encoder.neck.{name}" for name, _ in neck.named_parameters()}


def test_checkpointed_activations_give_the_same_gradients(tmp_path) -> None:
    """With drop path, so that the random numbers have to come back too."""
    batch = batch_of(tmp_path)
    plain, saving = (build(drop_path=0.5, checkpoint_activations=on) for on in (False, True))
    assert saving.model.image_encoder.grad_checkpointing and saving.model.mask_decoder.grad_checkpointing
    expected, ours = gradients(plain, batch), gradients(saving, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_checkpointing_reaches_timms_encoders() -> None:
    model = build_sam("efficient_sam_vitt", image_size=32, decoder="sam")
    encoder = timm.create_model("samvit_base_patch16", img_size=32, depth=1, embed_dim=32, num_heads=2, num_classes=0)
    for on in (True, False):
        model.image_encoder = encoder
        SegmenterFinetuning(
            model, SamProtocol(num_clicks=0, num_refinements=0), **{**OPTIONS, "checkpoint_activations": on}
        )
        assert encoder.grad_checkpointing == model.mask_decoder.grad_checkpointing == on


def test_one_iteration_at_a_time_gives_the_gradients_of_one_backward_pass(tmp_path) -> None:
    """The plain way: all iterations on one graph from the image to their mean."""
    batch = batch_of(tmp_path)
    for parts in (OPTIONS["train_parts"], ["image_encoder"], ["mask_decoder"], ["neck", "mask_decoder"]):
        method = build(train_parts=parts, protocol=SamProtocol(num_clicks=2, num_refinements=0))
        ours = gradients(method, batch)
        loss = method.training_step(batch, 0)
        method.zero_grad()
        plain = torch.stack(list(method.losses(method.embed(batch["image"]), batch)))[:, 0].mean()
        plain.backward()
        torch.testing.assert_close(loss, plain)
        expected = {name: p.grad for name, p in method.model.named_parameters() if p.grad is not None}
        assert expected.keys() <= ours.keys()
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, expected.get(name, torch.zeros_like(gradient)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoder", ["sam", "efficient_sam"])
def test_validation_asks_what_the_models_decoder_was_trained_for(tmp_path, monkeypatch, decoder: str) -> None:
    """SAM's gives one mask for several clicks and takes its mask back; EfficientSAM's gives three and takes clicks."""
    method, data, asked = build(decoder, protocol=PointsProtocol(max_points=3)).eval(), data_of(tmp_path), []

    def decode(self, image, coords, labels, mask_input=None, *, multimask_output):
        asked.append((multimask_output, mask_input is not None, bool((labels == BACKGROUND).any())))
        return original(self, image, coords, labels, mask_input, multimask_output=multimask_output)

    original = Sam.decode
    monkeypatch.setattr(Sam, "decode", decode)
    method.scores = {"": MaskScores(torch.device("cpu"))}
    with torch.no_grad():
        method.validation_step(data.on_after_batch_transfer(data.val_set("").__getitems__([0, 1]), 0), 0)
    several, masks, background = (set(column) for column in zip(*asked, strict=True))
    assert method.scores[""].iou.count > 0
    assert several == ({True, False} if decoder == "sam" else {True})
    assert masks == background == ({True, False} if decoder == "sam" else {False})


def test_drop_path_follows_the_position(tmp_path) -> None:
    method, batch = build(drop_path=0.5), batch_of(tmp_path)
    first = float(method.training_step(batch, 0))
    torch.rand(17)
    assert float(method.training_step(batch, 0)) == first  # whatever else drew random numbers before
    assert float(build().training_step(batch, 0)) != first


def test_protocols_that_the_model_does_not_know() -> None:
    with pytest.raises(ValueError, match="SamProtocol gives background clicks and mask prompts"):
        build("efficient_sam")
    with pytest.raises(ValueError, match=r"train_parts=.*choose one or more of image_encoder"):
        build(train_parts=["encoder"])


def test_data_of_another_frame_is_refused() -> None:
    method = build()
    spec = SimpleNamespace(image_size=64, resize_mode="stretch")
    device = SimpleNamespace(root_device=torch.device("cpu"))
    method._trainer = SimpleNamespace(datamodule=SimpleNamespace(spec=spec), strategy=device)
    with pytest.raises(ValueError, match="image_size=64 and resize_mode=stretch, the model 32 and stretch"):
        method.setup("fit")


def test_layer_decay_by_depth() -> None:
    model = build().model
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.8)
    rates = {id(p): group for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    named = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert named["image_encoder.blocks.11.mlp.fc1.weight"]["lr"] == pytest.approx(0.8)
    assert named["image_encoder.blocks.0.mlp.fc1.weight"]["lr"] == pytest.approx(0.8**12)
    assert named["image_encoder.patch_embed.proj.weight"]["lr"] == pytest.approx(0.8**13)
    assert named["image_encoder.neck.0.weight"]["lr"] == named["mask_decoder.iou_token.weight"]["lr"] == 1
    assert named["image_encoder.blocks.3.attn.qkv.weight"]["weight_decay"] == 0.1
    for name in ("image_encoder.pos_embed", "image_encoder.blocks.3.norm1.weight", "mask_decoder.mask_tokens.weight"):
        assert named[name]["weight_decay"] == 0, name
    assert {group["lr"] for group in parameter_groups(model, lr=0.5, weight_decay=0.1, layer_decay=1.0)} == {0.5}
    assert layer_number("mask_decoder.blocks.3.x", 12) == 13
    model.image_encoder = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="needs an encoder of blocks"):
        parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.8)


def test_the_papers_learning_rate() -> None:
    """arXiv:2312.00863, Sec. 4.1: 4e-4 at batch 128, linear decay to 0."""
    schedule = Schedule(epochs=5, warmup_epochs=0.003, base_lr=8e-4, global_batch_size=128, batch_size=2)
    length = schedule.resolve(num_images=11_185_362, world_size=64)
    assert length.lr == pytest.approx(4e-4) and length.warmup_steps == 262 and length.accumulate == 1
    factors = [lr_factor(step, warmup_steps=10, max_steps=110, decay="linear") for step in (0, 5, 10, 60, 110, 120)]
    assert factors == [0, 0.5, 1, 0.5, 0, 0]


def test_the_image_comes_out_of_the_square_as_it_was() -> None:
    image = torch.randint(0, 256, (1, 3, 6, 8)).repeat_interleave(8, 2).repeat_interleave(8, 3).byte()  # [1, 3, 48, 64]
    for fit in (longest_side_frame, stretch_frame):
        frame = fit((48, 64), 128)
        seen = normalize(frame.pad(frame.resize(image).round().byte()))
        back = cut_out(seen, frame)
        assert back.shape == (3, 48, 64) and back.dtype == torch.uint8
        assert (back.int() - image[0].int()).abs().float().mean() < 12
