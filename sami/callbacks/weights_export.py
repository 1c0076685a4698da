"""What training is for, written with every checkpoint."""

import json
from pathlib import Path

import pytorch_lightning as pl
from safetensors.torch import save

from sami.files import whole_file
from sami.models.build import OPTIONS
from sami.models.sam import Sam


class WeightsExport(pl.Callback):
    """Writes the encoder under timm's names, and the whole student, with every checkpoint.

    `timm.create_model("vit_small_patch16_224", num_classes=0, checkpoint_path=path)` loads `backbone.safetensors`
    strictly. `student.safetensors` is the encoder, decoder and head of `sami.models.sami.SAMI`, which predicts the
    teacher's features in their own units, also where training standardised them.

    Args:
        folder: of the files.
        recipe: strings to keep in the files' headers, such as the teacher and the mask ratio.
    """

    def __init__(self, folder: str, *, recipe: dict[str, str]) -> None:
        self.folder, self.recipe = Path(folder), recipe

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if not trainer.is_global_zero:
            return
        encoder = pl_module.student.encoder
        name = f"vit_{encoder.size}_patch{encoder.patch_size}"
        header = {"format": "pt", **self.recipe, "model": name, "step": str(trainer.global_step)}
        files = {"backbone.safetensors": encoder.state_dict(), "student.safetensors": pl_module.student_weights()}
        for file_name, weights in files.items():
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
            with whole_file(self.folder / file_name) as file:
                file.write(save(tensors, metadata=header))


class SegmenterExport(pl.Callback):
    """Writes the segmenter with every checkpoint; `build_sam(checkpoint=path)` loads it.

    Args:
        path: of the .safetensors file.
        recipe: strings to keep in the file's header.
    """

    def __init__(self, path: str, *, recipe: dict[str, str]) -> None:
        self.path, self.recipe = Path(path), recipe

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if not trainer.is_global_zero:
            return
        write_segmenter(pl_module.model, self.path, header={**self.recipe, "step": str(trainer.global_step)})


class StudentsExport(pl.Callback):
    """Writes every student with every checkpoint, a complete segmenter each; `build_sam(checkpoint=path)` loads it.

    Args:
        folder: of `segmenter.safetensors`, or `segmenter_NAME.safetensors` where there are several.
        recipe: strings to keep in the files' headers.
    """

    def __init__(self, folder: str, *, recipe: dict[str, str]) -> None:
        self.folder, self.recipe = Path(folder), recipe

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if not trainer.is_global_zero:
            return
        header = {**self.recipe, "step": str(trainer.global_step)}
        for name, student in pl_module.students.items():
            file = f"segmenter_{name}.safetensors" if len(pl_module.students) > 1 else "segmenter.safetensors"
            write_segmenter(student, self.folder / file, header=header)


def write_segmenter(model: Sam, path: Path, *, header: dict[str, str]) -> None:
    """A file for `build_sam`, written whole, with strings to keep in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = json.dumps({option: getattr(model, option) for option in OPTIONS})
    with whole_file(path) as file:
        file.write(save(tensors, metadata={**header, "sam": about}))
