"""Checking a cache: every byte against its checksum, and some records against the teacher.

B images   N tokens   E target width   T tokens of all images
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sami.cache.manifest import read_manifest, record_format, size_problem
from sami.cache.reader import TARGET, CacheReader
from sami.cache.records import HEAD, TAR_BLOCK
from sami.cache.split import CacheTask, RunningTeacher
from sami.cache.teacher import build_codec
from sami.data.transforms import BrokenImage
from sami.data.views import Batch
from sami.metrics.agreement import explained_variance

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
        ValueError: the cache is of other photos, or of a teacher with other weights or settings; see `read_again`; or a
            target is further off than the manifest states.
    """
    reader = CacheReader(task.folder, task.source)
    reader.check({name: value for name, value in task.describe().items() if name in reader.manifest})
    if task.num_views > reader.num_views:
        raise ValueError(f"{task.folder} holds {reader.num_views} views, not cache.num_views={task.num_views}")
    codec = build_codec(reader.manifest).to(running.device)
    stated = reader.manifest["error"]["worst_relative_error"] + TOLERANCE[reader.manifest["precision"]]
    stored, exact, worst, num_views = [], [], 0.0, 0
    for batch in task.sample(num_photos):
        found = {index: read_again(task, reader, batch, index) for index in range(len(batch["places"]))}
        found = {index: record for index, record in found.items() if record is not None}
        if not found:
            continue
        entries = reader.empty(len(found))
        for number, record in enumerate(found.values()):
            reader.fill(entries, number, record, record["box"], flip=False)
        counted = task.views.counted_tokens(batch["head"], task.grid)[list(found)].to(running.device)  # [B, N]
        decoded = codec.decode(stored_fields(entries, running.device)) * counted.unsqueeze(2)  # [B, N, E]
        target = running(batch, whole=task.views.whole)[list(found)] * counted.unsqueeze(2)  # [B, N, E]
        relative = (decoded - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2))  # [B]
        if relative.max() > stated:
            place = batch["places"][list(found)[int(relative.argmax())]]
            raise ValueError(
                f"{task.source.name(*place[:2])}, view {place[2]}: its target in {task.folder} is off by "
                f"{relative.max():.4f} of its length from what the teacher says now, more than the {stated:.4f} stated"
            )
        worst, num_views = max(worst, float(relative.max())), num_views + len(found)
        stored.append(decoded[counted].cpu())  # [T, E]
        exact.append(target[counted].cpu())
    if not stored:
        raise ValueError(f"none of the {num_photos} photos tried has a target in {task.folder}")
    return Agreement(num_views, *agreement(torch.cat(stored), torch.cat(exact)), worst)


def read_again(task: CacheTask, reader: CacheReader, batch: Batch, index: int) -> np.void | None:
    """The record of a photo of the batch, None where the photo was broken and still is.

    Raises:
        ValueError: the photo, or the view drawn of it, is not what it was when the record was written.
    """
    unit, row, view = batch["places"][index]
    head, where = batch["head"][index], f"{task.source.name(unit, row)}, view {view}"
    try:
        record = reader.read(unit, row, view)
    except BrokenImage as error:
        if head["valid"]:
            shard = task.folder / reader.layout.locate(unit, row, view)[0]
            raise ValueError(f"{where}: {error}, and can be read now. Delete {shard}, and write again") from error
        return None
    if not head["valid"]:
        raise ValueError(
            f"{where}: the photo cannot be read any more, {dict(batch['broken'])[task.source.name(unit, row)]}"
        )
    if record["photo"] != head["photo"]:
        raise ValueError(f"{where}: the image has changed since its targets were written to {task.folder}")
    if any((record[name] != head[name]).any() for name in HEAD.names):
        raise ValueError(f"{where}: its view is {head} now, and was {record[list(HEAD.names)]} in {task.folder}")
    return record


def stored_fields(entries: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What `TargetCodec` decodes, from the entries of a batch."""
    return {name.removeprefix(TARGET): tensor.to(device) for name, tensor in entries.items()}


def agreement(stored: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean cosine and explained variance of tokens [T, E]."""
    cosine = torch.cosine_similarity(stored, exact, dim=1).mean()
    return float(cosine), float(explained_variance(stored.unsqueeze(0), exact.unsqueeze(0)))
