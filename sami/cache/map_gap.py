"""What it costs to cut a crop's target from the map of the whole photo.

B images   N tokens   E target width   T tokens of all images
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sami.cache.reader import CacheReader
from sami.cache.split import CacheTask, RunningTeacher
from sami.cache.teacher import build_codec
from sami.cache.verify import agreement, stored_fields
from sami.data.photos import PhotoData
from sami.data.transforms import crop_and_resize, normalize
from sami.data.views import fixed_view
from sami.ops.resize import area_resize


@torch.no_grad()
def map_gap(
    task: CacheTask, data: PhotoData, running: RunningTeacher, num_photos: int
) -> dict[str, tuple[float, float]]:
    """Cosine and explained variance of targets cut from maps, against what the teacher says of the very crops.

    It sees them as a run with the teacher online would show them, and enlarged to the size of the whole photos.

    Args:
        task: of maps.
        data: how crops are drawn, and how large the student sees them.
    """
    reader = CacheReader(task.folder, task.source)
    codec = build_codec(reader.manifest).to(running.device)
    side, enlarged = data.view["side"], task.views.side
    wanted = (side // task.teacher.patch_size,) * 2
    cut: list[Tensor] = []
    exact: dict[int, list[Tensor]] = {side: [], enlarged: []}
    for batch in task.sample(num_photos):
        places = [place for place, head in zip(batch["places"], batch["head"], strict=True) if head["valid"]]
        if not places:
            continue
        entries, images = reader.empty(len(places)), []
        for index, (unit, row, view) in enumerate(places):
            photo = task.source.read(unit, row)
            box, flip = fixed_view(data.crops, data.seed, unit, row, view, photo)
            reader.fill(entries, index, reader.read(unit, row, view), box, flip=flip)
            images.append(crop_and_resize(photo.image, box, side, flip=flip))
        fields = stored_fields(entries, running.device)
        regions, flips = fields["region"], fields["flip"]
        cut.append(codec.decode_crop(fields, regions, flips, given=task.grid, wanted=wanted).flatten(0, 1).cpu())
        image = normalize(torch.stack(images).to(running.device))  # [B, 3, side, side]
        for size, targets in exact.items():
            seen = F.interpolate(image, (size, size), mode="bilinear") if size != side else image
            targets.append(on_grid(running.ask(seen), wanted).flatten(0, 1).cpu())
    tokens = torch.cat(cut)  # [T, E]
    names = {side: f"crops as they are, {side} pixels", enlarged: f"crops enlarged to {enlarged} pixels"}
    return {names[size]: agreement(tokens, torch.cat(targets)) for size, targets in exact.items()}


def on_grid(target: Tensor, wanted: tuple[int, int]) -> Tensor:
    """[B, N, E] of a square grid -> [B, gh * gw, E] on another, by area."""
    side = round(target.shape[1] ** 0.5)
    return area_resize(target.transpose(1, 2).unflatten(2, (side, side)), wanted).flatten(2).transpose(1, 2)
