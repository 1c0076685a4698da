"""What distillation starts from: students with the teacher's decoder."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from sami.cli import print0
from sami.models.build import MODELS, TIMM, load_decoder, start_segmenter
from sami.models.image_encoders.neck import EMBEDDING_WIDTH
from sami.models.sam import Sam
from sami.models.teachers import SegmenterTeacher, Teacher
from sami.models.weights import build_random

STUDENTS = {  # name: segmenter
    "tiny_vit_5m": "mobile_sam",
    "repvit_m2_3": "repvit_sam",
    "repvit_m1_1": "repvit_sam_m1_1",
    "vit_t": "efficient_sam_vitt",
    "vit_s": "efficient_sam_vits",
    "vit_b": "efficient_sam_vitb",
}


def start_students(
    teacher: Teacher,
    *,
    names: Sequence[str],
    init: Mapping[str, str] | None,
    decoder_checkpoint: str | None,
    image_size: int,
    resize_mode: str,
    drop_path: float,
) -> tuple[nn.ModuleDict, Sam]:
    """The segmenters to train, by a name that files and numbers can have, and the teacher's decoder.

    Each begins with the teacher's prompt encoder and mask decoder. The decoder on its own is a `Sam` whose image
    encoder does nothing: it takes embeddings.

    Args:
        teacher: whose maps the students will learn.
        names: of `STUDENTS`, of `build_sam`, or "timm/NAME".
        init: backbones by name of the student, see `load_backbone`; those without one begin at random.
        decoder_checkpoint: the file of the teacher's whole segmenter, such as sam_vit_h_4b8939.pth. None: the decoder
            of a `SegmenterTeacher`, else a random one.
        image_size, resize_mode, drop_path: see `build_sam`.

    Raises:
        ValueError: an unknown student, one that is asked for twice, or none; an `init` for a student that is not
            there; a teacher whose maps are no image embeddings; or see `start_segmenter` and `load_decoder`.
    """
    init = init or {}
    if isinstance(names, str):
        raise ValueError(f"students={names}: give a list, students=[{names}]")
    if isinstance(teacher, SegmenterTeacher):
        check_teacher(teacher, image_size, resize_mode)
    if not names or len(set(names)) < len(names) or not set(init) <= set(names):
        raise ValueError(f"students={list(names)}, init={dict(init)}: name each student once, and only those in init")
    unknown = [name for name in names if not (name in STUDENTS or name in MODELS or name.startswith(TIMM))]
    if unknown:
        raise ValueError(f"students={unknown}: choose from {', '.join(STUDENTS)}, or {TIMM} and a name of timm's")
    if teacher.width != EMBEDDING_WIDTH:
        raise ValueError(f"the teacher gives {teacher.width} channels; a segmenter's image embedding has 256")
    decoder = teacher_decoder(teacher, decoder_checkpoint, image_size=image_size, resize_mode=resize_mode)
    how = {"image_size": image_size, "resize_mode": resize_mode, "decoder": decoder.decoder, "drop_path": drop_path}
    students = nn.ModuleDict()
    for name in names:
        files = {"checkpoint": None, "backbone": init.get(name), "decoder_checkpoint": None}
        student = start_segmenter(name=STUDENTS.get(name, name), **files, **how)
        copy_decoder(decoder, student)
        students[name.replace("/", "_").replace(".", "_")] = student
    return students, decoder


def check_teacher(teacher: SegmenterTeacher, image_size: int, resize_mode: str) -> None:
    """Raises ValueError where the teacher was made for images of another kind than the students will see."""
    sam = cast(Sam, teacher.sam)
    if teacher.trained and sam.resize_mode != resize_mode:
        raise ValueError(
            f"the teacher {sam.name} takes images with resize_mode={sam.resize_mode}, the students {resize_mode}: set "
            f"model.resize_mode={sam.resize_mode}"
        )
    if sam.name.startswith("sam_") and image_size != sam.image_size:
        raise ValueError(
            f"model.image_size={image_size}: the position tables of {sam.name} are for {sam.image_size}; "
            f"teacher={sam.name} takes any size"
        )


def teacher_decoder(teacher: Teacher, checkpoint: str | None, *, image_size: int, resize_mode: str) -> Sam:
    """The second half of the teacher's segmenter, frozen: embeddings and prompts in, masks out."""
    own = cast(Sam, teacher.sam) if isinstance(teacher, SegmenterTeacher) and checkpoint is None else None
    options = {"image_size": image_size, "resize_mode": resize_mode, "decoder": own.decoder if own else "sam"}
    decoder = cast(Sam, build_random(lambda: Sam(nn.Identity(), name="teacher", **options), announce=None))
    decoder.eval().requires_grad_(False)
    if checkpoint is not None:
        load_decoder(decoder, checkpoint)
        print0(f"decoder of {checkpoint}; nothing says that it is this teacher's: if not, val/of_teacher/box is low")
    elif own is not None:
        copy_decoder(own, decoder)
    else:
        print0("decoder_checkpoint=null: the decoder has random weights, and what is said of masks means nothing")
    return decoder


def copy_decoder(source: Sam, to: Sam) -> None:
    """Weights of prompt encoder and mask decoder of one segmenter into another."""
    to.prompt_encoder.load_state_dict(source.prompt_encoder.state_dict())
    to.mask_decoder.load_state_dict(source.mask_decoder.state_dict())
