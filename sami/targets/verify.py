"""Checking a cache: every byte against its checksum, and some records against the teacher.

B images   N tokens   E target width
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sami.data.cache_manifest import read_manifest, record_format, size_problem
from sami.data.cache_reader import TARGET, CacheReader
from sami.data.cache_records import HEAD, TAR_BLOCK
from sami.data.photos import PhotoData
from sami.data.transforms import crop_and_resize, normalize
from sami.data.views import fixed_view
from sami.metrics.agreement import explained_variance
from sami.ops.resize import area_resize
from sami.targets.cached import build_codec
from sami.targets.task import CacheTask, RunningTeacher

TOLERANCE = {"32": 1e-3, "32-true": 1e-3, "16-mixed": 5e-3, "bf16-mixed": 2e-2}  # another machine rounds otherwise


class Agreement(NamedTuple):
    """How close stored targets are to exact ones."""

    num_views: int
    cosine: float
    explained_variance: float
    worst_relative_error: float


def find_damage(folder: Path) -> Iterator[str]:
    """A line for every shard that is not as it was written, and for each of its records that is damaged.

    Raises:
        ValueError: see `read_manifest`.
    """
    manifest = read_manifest(folder)
    layout = record_format(manifest)
    for name, shard in tqdm(manifest["shards"].items(), desc=f"checking {folder.name}", unit="shard"):
        path = folder / name
        if problem := size_problem(path, shard):
            yield problem
        if not path.exists():
            continue
        digest, damaged = hashlib.sha256(), []
        with open(path, "rb") as file:
            for number in range(shard["photos"]):
                data = file.read(layout.stride)
                digest.update(data)
                start = layout.offset(0)
                try:
                    layout.unpack(data[start : start + layout.dtype.itemsize])
                except ValueError as error:
                    key = data[:TAR_BLOCK].split(b"\0")[0].decode(errors="replace").partition(".")[0]
                    damaged.append(f"{path}, record {number}, key {key}: {error}")
            digest.update(file.read())
        yield from damaged
        if not damaged and not problem and digest.hexdigest() != shard["sha256"]:
            yield f"{path} does not match its hash, though its records do: it was damaged between them"


@torch.no_grad()
def recompute(task: CacheTask, running: RunningTeacher, num_photos: int) -> Agreement:
    """How some records, spread over all, agree with what the teacher says of these photos now.

    Raises:
        ValueError: the cache is of other photos, or of a teacher with other weights or settings; a photo has changed;
            its view is drawn otherwise; or a target is further off than the manifest states.
    """
    reader = CacheReader(task.folder, task.source)
    reader.check({name: value for name, value in task.describe().items() if name in reader.manifest})
    codec = build_codec(reader.manifest).to(running.device)
    error = reader.manifest["error"]
    bound = error["worst_relative_error"] + TOLERANCE[reader.manifest["precision"]]
    stored, exact, worst = [], [], 0.0
    for batch in task.sample(num_photos):
        places = [place for place, head in zip(batch["places"], batch["head"], strict=True) if head["valid"]]
        heads = batch["head"][batch["head"]["valid"]]
        records = reader.empty(len(places))
        for index, ((unit, row, view), head) in enumerate(zip(places, heads, strict=True)):
            record = reader.read(unit, row, view)
            where = f"{task.source.name(unit, row)}, view {view}"
            if record["photo"] != head["photo"]:
                raise ValueError(f"{where}: the image has changed since its targets were written to {task.folder}")
            if any((record[name] != head[name]).any() for name in HEAD.names):
                raise ValueError(
                    f"{where}: its view is {head} now, and was {record[list(HEAD.names)]} in {task.folder}"
                )
            reader.fill(records, index, record, record["box"], flip=False)
        decoded = codec.decode(fields_of(records, running.device))  # [B, N, E]
        target = running(batch, whole=task.views.whole)[torch.from_numpy(batch["head"]["valid"])]  # [B, N, E]
        relative = (decoded - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2))  # [B]
        if relative.max() > bound:
            unit, row, view = places[int(relative.argmax())]
            shard, number = reader.layout.locate(unit, row, view)
            raise ValueError(
                f"{task.folder / shard}, record {number} (key {task.source.key(unit, row)}) is off by "
                f"{relative.max():.4f} of its length from what the teacher says now, more than the {bound:.4f} stated"
            )
        worst = max(worst, float(relative.max()))
        stored.append(decoded.cpu())
        exact.append(target.cpu())
    return agreement(torch.cat(stored), torch.cat(exact), worst)


@torch.no_grad()
def map_gap(task: CacheTask, data: PhotoData, running: RunningTeacher, num_photos: int) -> dict[str, Agreement]:
    """How targets cut from maps agree with what the teacher says of the very crops, seen as they are and enlarged.

    Args:
        task: of maps.
        data: how crops are drawn and how large the student sees them.
    """
    reader = CacheReader(task.folder, task.source)
    codec = build_codec(reader.manifest).to(running.device)
    side = data.view["side"]
    wanted = (side // task.teacher.patch_size,) * 2
    cut, exact = [], {f"crops as they are, {side} pixels": [], f"crops enlarged to {task.views.side} pixels": []}
    for batch in task.sample(num_photos):
        places = [place for place, head in zip(batch["places"], batch["head"], strict=True) if head["valid"]]
        records, images = reader.empty(len(places)), []
        for index, (unit, row, view) in enumerate(places):
            photo = task.source.read(unit, row)
            box, flip = fixed_view(data.crops, data.seed, unit, row, view, photo)
            reader.fill(records, index, reader.read(unit, row, view), box, flip=flip)
            images.append(crop_and_resize(photo.image, box, side, flip=flip))
        regions, flips = (records[TARGET + name].to(running.device) for name in ("region", "flip"))
        fields = fields_of(records, running.device)
        cut.append(codec.decode_crop(fields, regions, flips, given=task.grid, wanted=wanted).cpu())
        image = normalize(torch.stack(images).to(running.device))  # [B, 3, side, side]
        for name, size in zip(exact, (side, task.views.side), strict=True):
            seen = F.interpolate(image, (size, size), mode="bilinear") if size != side else image
            exact[name].append(on_grid(running.ask(seen), wanted).cpu())
    tokens = torch.cat(cut)
    return {name: agreement(tokens, torch.cat(targets), float("nan")) for name, targets in exact.items()}


def on_grid(target: Tensor, wanted: tuple[int, int]) -> Tensor:
    """[B, N, E] of a square grid -> [B, gh * gw, E] on another, by area."""
    side = round(target.shape[1] ** 0.5)
    return area_resize(target.transpose(1, 2).unflatten(2, (side, side)), wanted).flatten(2).transpose(1, 2)


def fields_of(records: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What `TargetCodec` decodes, from the entries of a batch."""
    return {name.removeprefix(TARGET): tensor.to(device) for name, tensor in records.items()}


def agreement(stored: Tensor, exact: Tensor, worst: float) -> Agreement:
    """Of targets [n, N, E]."""
    cosine = torch.cosine_similarity(stored, exact, dim=2).mean()
    return Agreement(len(exact), float(cosine), float(explained_variance(stored, exact)), worst)
