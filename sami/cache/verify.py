"""Checking a cache: every byte against its checksum, some records against the teacher, and crops cut from maps.

B images   N tokens   E target width   T tokens of all images
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sami.cache.manifest import read_manifest, record_format, size_problem
from sami.cache.reader import TARGET, CacheReader
from sami.cache.records import HEAD_NAMES, TAR_BLOCK
from sami.cache.split import CacheSplit, RunningTeacher
from sami.cache.teacher import build_codec
from sami.data.crops import crop_and_resize, normalize
from sami.data.datasets import Batch, stack_rows
from sami.data.decode import BrokenImage, image_size
from sami.data.pretraining import PretrainingData
from sami.data.sampling import fixed_view
from sami.metrics.agreement import explained_variance
from sami.ops.area_resize import area_resize

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
def recompute(split: CacheSplit, running: RunningTeacher, num_images: int) -> Agreement:
    """How some records, spread over all, agree with what the teacher says of these images now.

    Raises:
        ValueError: the cache is of other images, or of a teacher with other weights or settings; see `read_again`; or a
            target is further off than the manifest states.
    """
    reader = CacheReader(split.folder, split.source)
    reader.check({name: value for name, value in split.describe().items() if name in reader.manifest})
    if split.num_views > reader.num_views:
        raise ValueError(f"{split.folder} holds {reader.num_views} views, not num_views={split.num_views}")
    codec = build_codec(reader.manifest).to(running.device)
    stated = reader.manifest["error"]["worst_relative_error"] + TOLERANCE[reader.manifest["precision"]]
    stored, exact, worst, num_views = [], [], 0.0, 0
    for batch in split.sample(num_images):
        read = {number: read_again(split, reader, batch, number) for number in range(len(batch["indices"]))}
        found = {number: record for number, record in read.items() if record is not None}
        if not found:
            continue
        entries = stack_rows([reader.entries(record, record["box"], flip=False) for record in found.values()])
        token_valid = split.views.valid_tokens(batch["head"], split.grid)[list(found)].to(running.device)  # [B, N]
        decoded = codec.decode(stored_fields(entries, running.device)) * token_valid.unsqueeze(2)  # [B, N, E]
        target = running(batch, whole=split.views.whole)[list(found)] * token_valid.unsqueeze(2)  # [B, N, E]
        relative = (decoded - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2))  # [B]
        if relative.max() > stated:
            unit, row, view = batch["indices"][list(found)[int(relative.argmax())]]
            raise ValueError(
                f"{split.source.name(unit, row)}, view {view}: its target in {split.folder} is off by "
                f"{relative.max():.4f} of its length from what the teacher says now, more than the {stated:.4f} stated"
            )
        worst, num_views = max(worst, float(relative.max())), num_views + len(found)
        stored.append(decoded[token_valid].cpu())  # [T, E]
        exact.append(target[token_valid].cpu())
    if not stored:
        raise ValueError(f"none of the {num_images} images tried has a target in {split.folder}")
    return Agreement(num_views, *agreement(torch.cat(stored), torch.cat(exact)), worst)


def read_again(split: CacheSplit, reader: CacheReader, batch: Batch, number: int) -> np.void | None:
    """The record of an image of the batch, None where the image was broken and still is.

    Raises:
        ValueError: the image, or the view drawn of it, is not what it was when the record was written.
    """
    unit, row, view = batch["indices"][number]
    head, where = batch["head"][number], f"{split.source.name(unit, row)}, view {view}"
    try:
        record = reader.read(unit, row, view)
    except BrokenImage as error:
        if head["valid"]:
            shard = split.folder / reader.layout.locate(unit, row, view)[0]
            raise ValueError(f"{where}: {error}, and can be read now. Delete {shard}, and write again") from error
        return None
    if not head["valid"]:
        raise ValueError(
            f"{where}: the image cannot be read any more, {dict(batch['broken'])[split.source.name(unit, row)]}"
        )
    if record["photo"] != head["photo"]:
        raise ValueError(f"{where}: the image has changed since its targets were written to {split.folder}")
    if any((record[name] != head[name]).any() for name in HEAD_NAMES):
        raise ValueError(f"{where}: its view is {head} now, and was {record[list(HEAD_NAMES)]} in {split.folder}")
    return record


def stored_fields(entries: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What `TargetCodec` decodes, from the entries of a batch."""
    return {name.removeprefix(TARGET): tensor.to(device) for name, tensor in entries.items()}


def agreement(stored: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean cosine and explained variance of tokens [T, E]."""
    cosine = torch.cosine_similarity(stored, exact, dim=1).mean()
    return float(cosine), float(explained_variance(stored.unsqueeze(0), exact.unsqueeze(0)))


@torch.no_grad()
def crop_error(
    split: CacheSplit, data: PretrainingData, running: RunningTeacher, num_images: int
) -> dict[str, tuple[float, float]]:
    """What cutting crops out of maps costs: cosine and explained variance against the teacher's answer to the crops.

    It sees them as a run with the teacher online would show them, and enlarged to the size of the whole images.

    Args:
        split: of maps.
        data: how crops are drawn, and how large the student sees them.
    """
    reader = CacheReader(split.folder, split.source)
    codec = build_codec(reader.manifest).to(running.device)
    own, enlarged = data.image_size, split.views.image_size
    wanted = (own // split.teacher.patch_size, own // split.teacher.patch_size)
    cut: list[Tensor] = []
    exact: dict[int, list[Tensor]] = {own: [], enlarged: []}
    for batch in split.sample(num_images):
        indices = [index for index, head in zip(batch["indices"], batch["head"], strict=True) if head["valid"]]
        if not indices:
            continue
        entries, images = [], []
        for unit, row, view in indices:
            encoded = split.source.read(unit, row).image
            box, flip = fixed_view(data.crops, data.seed, unit, row, view, image_size(encoded))
            entries.append(reader.entries(reader.read(unit, row, view), box, flip=flip))
            images.append(crop_and_resize(encoded, box, own, flip=flip))
        fields = stored_fields(stack_rows(entries), running.device)
        regions, flips = fields["region"], fields["flip"]
        cut.append(codec.decode_crop(fields, regions, flips, given=split.grid, wanted=wanted).flatten(0, 1).cpu())
        image = normalize(torch.stack(images).to(running.device))  # [B, 3, own, own]
        for size, targets in exact.items():
            seen = F.interpolate(image, (size, size), mode="bilinear") if size != own else image
            targets.append(on_grid(running.ask(seen), wanted).flatten(0, 1).cpu())
    tokens = torch.cat(cut)  # [T, E]
    names = {own: f"crops as they are, {own} pixels", enlarged: f"crops enlarged to {enlarged} pixels"}
    return {names[size]: agreement(tokens, torch.cat(targets)) for size, targets in exact.items()}


def on_grid(target: Tensor, wanted: tuple[int, int]) -> Tensor:
    """[B, N, E] of a square grid -> [B, gh * gw, E] on another, by area."""
    side = round(target.shape[1] ** 0.5)
    return area_resize(target.transpose(1, 2).unflatten(2, (side, side)), wanted).flatten(2).transpose(1, 2)
