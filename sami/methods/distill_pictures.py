"""What the teacher and its students see in a photo, as one picture per validation set and validation.

B images   N tokens   E channels   Q prompts per image   S pixels per side
"""

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from sami.data.datasets import keep_valid
from sami.data.transforms import denormalize
from sami.methods.distill_validation import answers_to_all, to_map
from sami.methods.mask_pictures import ValidationPictures, draw_sheet, paint
from sami.methods.pictures import enlarge, pca_colors
from sami.methods.prompting import decode_with
from sami.ops import masks as mask_ops


class DistillPictures(ValidationPictures):
    """Draws photo, the teacher's map and masks, and those of each student: colours of one basis, equal prompts.

    Masks are asked for by the boxes of the true ones where there are such, else by points anywhere in the photo.
    """

    title = "maps"

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> Image.Image | None:
        """The picture of one validation set; None without a photo, or where the cache holds nothing of it."""
        batch = trainer.datamodule.spread_val_batch(name, self.num_images)
        if not batch["image_valid"].any() or not trainer.datamodule.knows_teacher(name):
            return None
        batch = {key: value for key, value in keep_valid(batch).items() if isinstance(value, Tensor)}
        batch = {key: value.to(pl_module.device) for key, value in batch.items()}
        batch |= {key: batch[key][:, : self.num_masks] for key in ("box", "object_valid", "place_noise")}
        side, photo = pl_module.judge.image_size, denormalize(batch["image"]).cpu()
        with trainer.precision_plugin.val_step_context():
            target = pl_module.lesson(batch).target.float()  # [B, N, E]
            gh = gw = side // pl_module.teacher.patch_size
            maps = {"teacher": to_map(target, (gh, gw))}
            maps |= {label: student.embed(batch["image"]).float() for label, student in pl_module.students.items()}
            models = {"teacher": pl_module.judge, **pl_module.students}
            found = {who: answers_to_all(decode_with(models[who], maps[who]), batch, side) for who in maps}
        columns = {"photo": photo}
        for who, features in maps.items():
            colors = pca_colors(target, features.flatten(2).transpose(1, 2))[1]  # [B, N, 3]
            columns[who] = enlarge(colors.cpu(), (gh, gw), (side, side)).permute(0, 3, 1, 2)
            masks = found[who]["teacher_point"]  # [B, Q, h, w]
            if "teacher_box" in found[who]:
                masks = found[who]["teacher_box"] & batch["object_valid"][..., None, None]
            masks = mask_ops.enlarge(masks.float(), (side, side)) > 0.5
            masks = masks.cpu()
            columns[f"{who}'s masks"] = torch.stack([paint(*pair) for pair in zip(photo, masks, strict=True)])
        rows = [[column[row] for column in columns.values()] for row in range(len(photo))]
        return draw_sheet(rows, tuple(columns))
