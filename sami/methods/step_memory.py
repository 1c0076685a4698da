"""What a step of fine-tuning holds on a GPU, counted without one: nothing is computed, tensors have shapes only.

B images   Q objects per image   S pixels per side
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sami.data.sampling import NUM_NOISE
from sami.losses import mask_loss
from sami.methods.prompting import PromptProtocol
from sami.models.build import build_image_encoder, build_sam
from sami.models.sam import Sam

STATES = 4  # numbers per trainable parameter: itself, its gradient, two moments of AdamW


class SavedBytes:
    """Bytes that forward passes inside `with counting` keep for their backward passes, each storage once.

    Parameters are not counted: they are there anyway.
    """

    def __init__(self, parameters: Iterator[Tensor] = ()) -> None:
        self.known = {storage_of(parameter) for parameter in parameters}
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used twice

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what autograd saves."""
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            yield

    def pack(self, tensor: Tensor) -> Tensor:
        """Notes what is saved, and saves it."""
        if storage_of(tensor) not in self.known:
            self.storages[storage_of(tensor)] = tensor.untyped_storage()
        return tensor

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(storage.nbytes() for storage in self.storages.values())


def storage_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in."""
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step, less what a single operation needs for its moment.

    Args:
        states: of weights, gradients and moments, and the gradients that `mean_by_rounds` adds up in.
        encoder: what the image encoder keeps for its backward pass.
        checkpointed_encoder: likewise with activations computed again.
        rounds: what each round of prompts keeps, its loss included.
    """

    states: int
    encoder: int
    checkpointed_encoder: int
    rounds: list[int]

    @property
    def peak(self) -> int:
        """Each round's backward pass after it, see `mean_by_rounds`."""
        return self.states + self.encoder + max(self.rounds)

    @property
    def checkpointed_peak(self) -> int:
        """With activations computed again, of one block or one round at a time."""
        return self.states + self.checkpointed_encoder + max(self.rounds)

    @property
    def peak_of_one_backward(self) -> int:
        """If all rounds waited for one backward pass."""
        return self.states + self.encoder + sum(self.rounds)


def count_step(name: str, protocol: PromptProtocol, *, B: int, Q: int, S: int, bf16: bool = True) -> StepMemory:
    """`StepMemory` of training all parts of `build_sam(name, decoder="sam")` at S pixels on B images x Q masks.

    With fused attention: the image encoder runs as on a CPU, whose fused kernel keeps what that of GPUs does.
    """
    with FakeTensorMode():
        with torch.device("cuda"):
            sam = build_sam(name, decoder="sam", image_size=S)
        sam.image_encoder = build_image_encoder(name)
        sam.train()
        with lower_precision(bf16):
            return count_parts(sam, protocol, B, Q, S)


def count_parts(sam: Sam, protocol: PromptProtocol, B: int, Q: int, S: int) -> StepMemory:
    """See `count_step`."""
    parameters = list(sam.parameters())
    encoders = []
    for again in (True, False):
        sam.recompute_activations(again)
        encoders.append(SavedBytes(parameters))
        with encoders[-1].counting():
            embeddings = sam.embed(torch.empty(B, 3, S, S))
    side = embeddings.detach().to(sam.device).requires_grad_()
    masks = torch.zeros(B, Q, S // 4, S // 4, dtype=torch.bool, device=side.device)
    valid, noise = masks[..., 0, 0], torch.rand(B, Q, NUM_NOISE, device=side.device)
    rounds: list[int] = []

    def decode(prompts: tuple[Tensor, Tensor], mask_input: Tensor | None, *, multimask_output: bool):
        saved = SavedBytes(parameters)
        with saved.counting():
            low_res_masks, iou_predictions = sam.decode(side, *prompts, mask_input, multimask_output=multimask_output)
            mask_loss(low_res_masks, iou_predictions, masks, valid)
        rounds.append(saved.total)
        return low_res_masks.detach(), iou_predictions.detach()

    for _ in protocol.rounds(decode, masks, noise, side=S):
        pass
    decoder = [p for part in (sam.prompt_encoder, sam.mask_decoder) for p in part.parameters()]
    states = STATES * sum(p.nbytes for p in parameters) + sum(p.nbytes for p in (*decoder, side))
    return StepMemory(states, encoders[1].total, encoders[0].total, rounds)


@contextmanager
def lower_precision(on: bool) -> Iterator[None]:
    """bf16 autocast for both kinds of device; `torch.autocast` refuses a GPU that is not there."""
    before = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    types = {device: torch.get_autocast_dtype(device) for device in before}
    for device in before:
        torch.set_autocast_enabled(device, on)
        torch.set_autocast_dtype(device, torch.bfloat16)
    try:
        yield
    finally:
        for device, enabled in before.items():
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, types[device])
        torch.clear_autocast_cache()
