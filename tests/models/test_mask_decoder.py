from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sami.benchmark.reference_sam import decode_tiled
from sami.benchmark.timing import count_flops
from sami.models import mask_decoder
from sami.models.build import build_image_encoder
from sami.models.sam import Sam

SIDE = 8  # cells of the test's images, 128 pixels


def small_sam(decoder: str = "sam") -> Sam:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = Sam(torch.nn.Identity(), name="test", image_size=128, resize_mode="pad", decoder=decoder).eval()
        for parameter in sam.parameters():  # zero biases and unit norms would hide where they are left out
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.02)
    return sam.double()


def inputs(B: int = 2, Q: int = 3, P: int = 2, *, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, 256, SIDE, SIDE, generator=generator, dtype=torch.float64)
    coords = torch.rand(B, Q, P, 2, generator=generator) * 128
    return embeddings, coords, torch.ones(B, Q, P, dtype=torch.int64)


def ragged_labels(decoder: str) -> Tensor:
    """Two images, three prompts: a click, two or more clicks, a box with and without a click, and nothing."""
    other = 1 if decoder == "efficient_sam" else 0
    rows = [[1, -1, -1], [1, other, -1], [2, 3, -1], [1, 2, 3], [1, other, 1], [-1, -1, -1]]
    return torch.tensor(rows).view(2, 3, 3)


def one_by_one(sam: Sam, embeddings: Tensor, coords: Tensor, labels: Tensor, mask_input=None, **options):
    """The same from a call for each prompt, with its own points alone."""
    masks, ious = [], []
    for image in range(len(labels)):
        for prompt in range(labels.shape[1]):
            given = labels[image, prompt] != -1
            if not given.any():
                given[0] = True  # nothing at all is one point of padding
            mask = None if mask_input is None else mask_input[image, prompt][None, None]
            result = sam.decode(
                embeddings[image : image + 1],
                coords[image, prompt, given][None, None],
                labels[image, prompt, given][None, None],
                mask,
                **options,
            )
            masks.append(result[0])
            ious.append(result[1])
    shape = labels.shape[:2]
    return torch.cat(masks).squeeze(1).unflatten(0, shape), torch.cat(ious).squeeze(1).unflatten(0, shape)


def gradients(sam: Sam, embeddings: Tensor, result: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    sum((part * torch.randn(part.shape, generator=generator)).sum() for part in result).backward()
    found = {name: value.grad for name, value in sam.named_parameters() if value.grad is not None}
    found["image"] = embeddings.grad
    for parameter in sam.parameters():
        parameter.grad = None
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():  # the biases of keys have none but rounding errors
        scale = torch.maximum(value.abs().max(), 1e-4 * largest)
        assert (found[name] - value).abs().max() <= 1e-9 * scale, name


@pytest.mark.parametrize("decoder", ["sam", "efficient_sam"])
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("budget", [SIDE * SIDE, 2 * SIDE * SIDE, 100 * SIDE * SIDE])
def test_a_call_equals_single_calls(decoder, multimask_output, budget, monkeypatch):
    monkeypatch.setattr(mask_decoder, "CPU_TOKENS", budget)  # one prompt, two of three, and all images at a time
    sam = small_sam(decoder)
    embeddings, coords, _ = inputs(P=3)
    labels = ragged_labels(decoder)
    results = []
    for run in (sam.decode, partial(one_by_one, sam)):
        leaf = embeddings.clone().requires_grad_()
        result = run(leaf, coords, labels, multimask_output=multimask_output)
        assert result[0].shape == (2, 3, 3 if multimask_output else 1, 4 * SIDE, 4 * SIDE)
        results.append((tuple(part.detach() for part in result), gradients(sam, leaf, result)))
    (found, found_gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_gradients(found_gradients, expected_gradients)


@pytest.mark.parametrize("multimask_output", [True, False])
def test_mask_prompts_in_a_call_equal_single_calls(multimask_output, monkeypatch):
    monkeypatch.setattr(mask_decoder, "CPU_TOKENS", 2 * SIDE * SIDE)
    sam = small_sam()
    embeddings, coords, _ = inputs(P=3)
    mask_input = torch.randn(2, 3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(3)).double()
    results = []
    for run in (sam.decode, partial(one_by_one, sam)):
        leaf = embeddings.clone().requires_grad_()
        result = run(leaf, coords, ragged_labels("sam"), mask_input, multimask_output=multimask_output)
        results.append((tuple(part.detach() for part in result), gradients(sam, leaf, result)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
    assert_same_gradients(results[0][1], results[1][1])


@pytest.mark.parametrize("decoder", ["sam", "efficient_sam"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_equals_the_released_design(decoder, with_mask):
    if with_mask and decoder == "efficient_sam":
        pytest.skip("takes no masks")
    sam = small_sam(decoder)
    embeddings, coords, labels = inputs(P=6)
    mask_input = torch.randn(2, 3, 4 * SIDE, 4 * SIDE).double() if with_mask else None
    results = []
    for run in (sam.decode, partial(decode_tiled, sam)):
        leaf = embeddings.clone().requires_grad_()
        result = run(leaf, coords, labels, mask_input, multimask_output=True)
        results.append((tuple(part.detach() for part in result), gradients(sam, leaf, result)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
    assert_same_gradients(results[0][1], {name: results[1][1][name] for name in results[0][1]})


def test_inference_puts_pixels_where_training_does():
    sam = small_sam()
    embeddings, coords, labels = inputs()
    with torch.no_grad():
        found = sam.decode(embeddings, coords, labels, multimask_output=True)
    expected = sam.decode(embeddings.requires_grad_(), coords, labels, multimask_output=True)
    torch.testing.assert_close(found, tuple(part.detach() for part in expected), rtol=0, atol=1e-10)


def test_every_parameter_gets_a_gradient():
    """DistributedDataParallel would wait for one that gets none."""
    sam = small_sam()
    embeddings, coords, _ = inputs(P=3)
    first = sam.decode(embeddings, coords, ragged_labels("sam"), multimask_output=True)
    again = sam.decode(embeddings, coords, ragged_labels("sam"), first[0][:, :, 0], multimask_output=False)
    sum(part.sum() for part in (*first, *again)).backward()
    assert [name for name, value in sam.named_parameters() if value.grad is None] == []


def test_recomputed_activations_give_the_same_gradients(monkeypatch):
    monkeypatch.setattr(mask_decoder, "CPU_TOKENS", 2 * SIDE * SIDE)
    sam = small_sam()
    embeddings, coords, labels = inputs()
    results = []
    for recompute in (False, True):
        sam.mask_decoder.set_grad_checkpointing(recompute)
        calls = []
        monkeypatch.setattr(sam.mask_decoder, "decode_group", counted(type(sam.mask_decoder).decode_group, sam, calls))
        leaf = embeddings.clone().requires_grad_()
        results.append(gradients(sam, leaf, sam.decode(leaf, coords, labels, multimask_output=True)))
        assert len(calls) == (8 if recompute else 4)
    assert_same_gradients(results[1], results[0])


def counted(decode_group, sam, calls):
    def run(*arguments):
        calls.append(1)
        return decode_group(sam.mask_decoder, *arguments)

    return run


def test_the_image_is_projected_once():
    """Operations per further prompt, at the grid of 1024 pixels, against those of the released design."""
    sam = small_sam().float()
    embeddings = torch.randn(1, 256, 64, 64)
    coords, labels = torch.rand(1, 3, 1, 2), torch.ones(1, 3, 1, dtype=torch.int64)

    @torch.no_grad()
    def flops(decode, num_prompts: int) -> int:
        part = coords[:, :num_prompts], labels[:, :num_prompts]
        return count_flops(lambda: decode(embeddings, *part, multimask_output=True))

    released = flops(partial(decode_tiled, sam), 3) - flops(partial(decode_tiled, sam), 2)
    first, further = flops(sam.decode, 1), flops(sam.decode, 3) - flops(sam.decode, 2)
    assert further < 0.55 * released
    assert first - further == pytest.approx(
        3 * 2 * 4096 * 256 * 128, rel=0.01
    )  # the first layer's keys, values and queries


class Copies(TorchDispatchMode):
    """The largest result of an operation that only copies."""

    largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation.overloadpacket.__name__ in {
            "clone",
            "copy_",
            "_to_copy",
            "repeat",
            "index",
            "index_select",
            "cat",
        }:
            self.largest = max(self.largest, result.numel())
        return result


def test_no_copy_of_the_image_per_prompt(monkeypatch):
    monkeypatch.setattr(mask_decoder, "CPU_TOKENS", 100 * SIDE * SIDE)
    sam = small_sam()
    embeddings, coords, labels = inputs(B=1, Q=32, P=1)
    image_per_prompt = 32 * embeddings.numel()
    with Copies() as copies:
        decode_tiled(sam, embeddings, coords, labels, multimask_output=True)
    assert copies.largest >= image_per_prompt
    with Copies() as copies:
        sam.decode(embeddings, coords, labels, multimask_output=True)
    assert copies.largest < image_per_prompt


def test_bf16_is_close_to_float32():
    sam = small_sam().float()
    embeddings, coords, _ = inputs(P=3)
    embeddings = embeddings.float()
    with torch.no_grad():
        expected = sam.decode(embeddings, coords, ragged_labels("sam"), multimask_output=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = sam.decode(embeddings, coords, ragged_labels("sam"), multimask_output=True)
    for part, whole in zip(found, expected, strict=True):
        assert part.dtype == torch.bfloat16
        assert (part.float() - whole).abs().max() < 0.03 * whole.abs().max()


def test_prepared_images_decode_as_embeddings_do():
    sam = small_sam()
    embeddings, coords, labels = inputs()
    image = sam.prepare(embeddings)
    expected = sam.decode(embeddings, coords, labels, multimask_output=True)
    for _ in range(2):
        torch.testing.assert_close(sam.decode(image, coords, labels, multimask_output=True), expected)
    torch.testing.assert_close(
        sam.decode(image.take([1]), coords[1:], labels[1:], multimask_output=True), tuple(part[1:] for part in expected)
    )
    torch.testing.assert_close(
        sam.decode(sam.prepare(embeddings).take([0]), coords[:1], labels[:1], multimask_output=True),
        tuple(part[:1] for part in expected),
    )


def test_shapes_and_masks_that_do_not_fit():
    sam = small_sam()
    embeddings, coords, labels = inputs()
    with pytest.raises(ValueError, match=r"point_coords \[2, 3, 2, 2\] and point_labels \[2, 2, 2\]"):
        sam.decode(embeddings, coords, labels[:, :2], multimask_output=True)
    with pytest.raises(ValueError, match="do not fit 1 images"):
        sam.decode(embeddings[:1], coords, labels, multimask_output=True)
    with pytest.raises(ValueError, match=r"mask_input is \[2, 3, 8, 8\], needed \[2, 3, 32, 32\]"):
        sam.decode(embeddings, coords, labels, torch.zeros(2, 3, 8, 8), multimask_output=True)
    with pytest.raises(ValueError, match="takes no mask prompts"):
        small_sam("efficient_sam").decode(embeddings, coords, labels, torch.zeros(2, 3, 32, 32), multimask_output=True)


def test_unknown_choices():
    encoder = build_image_encoder("efficient_sam_vitt")
    for options, message in (
        ({"resize_mode": "crop", "decoder": "sam"}, "resize_mode='crop'"),
        ({"resize_mode": "pad", "decoder": "sam2"}, "decoder='sam2'"),
        ({"resize_mode": "pad", "decoder": "sam", "image_size": 100}, "image_size=100: give a multiple of 16"),
    ):
        with pytest.raises(ValueError, match=message):
            Sam(encoder, name="test", **options)
