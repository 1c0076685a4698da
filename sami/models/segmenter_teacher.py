"""A whole segmenter as the teacher of another one's image encoder.

B images   H W pixels   N tokens   E = 256
"""

from torch import Tensor

from sami.models.build import build_sam
from sami.models.checkpoints import build_random
from sami.models.neck import EMBEDDING_WIDTH
from sami.models.teachers import Teacher


class SegmenterTeacher(Teacher):
    """What a segmenter's image encoder says; its prompt encoder and mask decoder are there too, in `sam`.

    Args:
        name: see `build_sam`.
        checkpoint: a released file, or `segmenter.safetensors` of a run. None: always the same random weights.
        decoder: "sam" or "efficient_sam", see `Sam`.
        patch_size: the student's.

    Raises:
        ValueError: see `build_sam`.
    """

    width = EMBEDDING_WIDTH

    def __init__(self, name: str, checkpoint: str | None, decoder: str = "sam", patch_size: int = 16) -> None:
        super().__init__(patch_size)
        announce = name if checkpoint is None else None
        sam = build_random(lambda: build_sam(name, checkpoint, decoder=decoder), announce=announce)
        self.sam, self.trained = sam.requires_grad_(False), checkpoint is not None

    def target(self, image: Tensor) -> Tensor:
        return self.to_tokens(self.sam.embed(image), image)
