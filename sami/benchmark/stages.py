"""What to time of a segmenter: image encoder and decoder, each beside the released design with the same weights.

Every function returns calls by name, to be run in turns (`sami.benchmark.pretraining.interleave`), so that ratios
hold on a busy machine.

Q prompts per image   S pixels per side
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from sami.benchmark.reference_sam import decode_tiled, plain_encoder
from sami.models.sam import Sam
from sami.ops.products import ONEDNN
from sami.ops.prompts import FOREGROUND

Stages = dict[str, Callable[[], object]]


def encoder_stages(sam: Sam, image_size: int, device: str) -> Stages:
    """Stages "encoder" and "encoder, released": one image of noise; `sam` with an `EfficientViT`."""
    image = torch.randn(1, 3, image_size, image_size, device=device)
    plain = plain_encoder(sam.image_encoder)
    return without_gradients(
        {"encoder": lambda: sam.image_encoder(image), "encoder, released": lambda: plain(image)},
    )


def decoder_stages(sam: Sam, num_prompts: int, device: str) -> Stages:
    """Three masks for each of Q points on one image, in five ways.

    "one call"; "single calls", each from the image embedding; "clicks", each from what `Sam.prepare` keeps of the
    image, as in `SamPredictor`; "tiled" and "tiled, single calls", as released.
    """
    side = sam.image_size // 16
    embedding = torch.randn(1, 256, side, side, device=device)
    coords = torch.rand(1, num_prompts, 1, 2, device=device) * sam.image_size
    labels = torch.full((1, num_prompts, 1), FOREGROUND, device=device)

    def each(decode: Callable, image: object) -> None:
        for row in range(num_prompts):
            decode(image, coords[:, row : row + 1], labels[:, row : row + 1], multimask_output=True)

    def tiled(*arguments: object, **options: object) -> object:
        return decode_tiled(sam, *arguments, **options)

    return without_gradients(
        {
            "one call": lambda: sam.decode(embedding, coords, labels, multimask_output=True),
            "single calls": lambda: each(sam.decode, embedding),
            "clicks": lambda: each(sam.decode, sam.prepare(embedding)),
            "tiled": lambda: tiled(embedding, coords, labels, multimask_output=True),
            "tiled, single calls": lambda: each(tiled, embedding),
        }
    )


def without_gradients(stages: Stages) -> Stages:
    """The same calls as in inference."""
    return {name: torch.no_grad()(stage) for name, stage in stages.items()}


def count_flops(stage: Callable[[], object]) -> int:
    """Matrix products, convolutions and attention of one call, two operations per multiply-add."""
    linear_too = {} if ONEDNN is None else {ONEDNN: linear_flops}
    with FlopCounterMode(display=False, custom_mapping=linear_too) as counter:
        stage()
    return counter.get_total_flops()


def linear_flops(tokens: Sequence[int], weight: Sequence[int], *rest: object, **options: object) -> int:
    """Of `sami.ops.products.linear`, from the shapes of its arguments."""
    return 2 * math.prod(tokens) * weight[0]
