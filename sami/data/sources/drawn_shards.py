"""The built-in scenes as shards like those of ImageNet and SA-1B, drawn once into a folder."""

import fcntl
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy import ndarray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from sami.data.shards import claim_folder, shard_name, write_shard, write_text
from sami.data.sources.drawn_scenes import CLASSES, FIRST_VAL_INDEX, draw_scene

VAL_SCENES = 400
VAL_SHARD = 40  # scenes


def draw_shards(folder: str, *, num_train: int, num_val: int) -> tuple[list[str], list[str]]:
    """Shards of the built-in scenes to train on and to validate, drawn into `folder` first.

    All commands share a folder: it has `VAL_SCENES` to validate on, of which the first are taken, in whole shards.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one rank draws, the others wait for it
        write_sample(Path(folder), num_train=num_train, num_val=max(num_val, VAL_SCENES), val_shard_size=VAL_SHARD)
    train, val = (sorted(map(str, Path(folder).glob(f"{split}-*.tar"))) for split in ("train", "val"))
    return train, val[: math.ceil(num_val / VAL_SHARD)]


def write_sample(
    folder: Path,
    *,
    seed: int = 0,
    num_train: int = 2000,
    num_val: int = VAL_SCENES,
    size: int = 256,
    shard_size: int = 500,
    val_shard_size: int | None = None,
) -> None:
    """Write `train-*.tar` and `val-*.tar`; shards that are there already are left alone, so that a killed run goes on.

    A sample is `{key}.jpg`, `{key}.cls` (the label, named in `classes.json`) and `{key}.json` (masks as in SA-1B).

    Args:
        shard_size, val_shard_size: scenes per shard; None as for training.

    Raises:
        ValueError: a number that makes no sense, or the folder holds shards of another seed or size.
    """
    if not 0 <= num_train <= FIRST_VAL_INDEX or num_val < 0 or num_train + num_val == 0 or shard_size < 1:
        raise ValueError(f"num_train={num_train}, num_val={num_val}, shard_size={shard_size}: give positive numbers")
    draw_scene(seed, 0, size=size)  # refuse a bad seed or size before anything is written
    splits = {
        "train": (0, num_train, shard_size),
        "val": (FIRST_VAL_INDEX, num_val, val_shard_size or shard_size),
    }
    for split, (_, num_scenes, per_shard) in splits.items():
        scenes = {"scenes": num_scenes, "seed": seed, "size": size, "shard_size": per_shard}
        claim_folder(folder, split, {"made_by": "sami.data.sample", "version": 1} | scenes)
    write_text(folder / "classes.json", json.dumps(CLASSES, indent=1) + "\n")
    with tqdm(total=num_train + num_val, desc="drawing the sample", unit="scene") as progress:
        for split, (first, num_scenes, per_shard) in splits.items():
            indices = range(first, first + num_scenes)
            for shard in range(math.ceil(num_scenes / per_shard)):
                part = indices[shard * per_shard : (shard + 1) * per_shard]
                path = folder / shard_name(split, shard)
                if path.exists():
                    progress.update(len(part))
                else:
                    write_shard(path, _samples(split, seed, part, size, progress))


def _samples(split: str, seed: int, indices: range, size: int, progress: tqdm) -> Iterator[dict[str, str | bytes]]:
    for index in indices:
        scene = draw_scene(seed, index, size=size)
        key = f"{split}_{index:010d}"
        jpg = simplejpeg.encode_jpeg(scene.image, quality=92, colorsubsampling="420")
        record = json.dumps(_annotate(scene.masks, key, index))
        yield {"__key__": key, "jpg": jpg, "cls": str(scene.label).encode(), "json": record.encode()}
        progress.update()


def _annotate(masks: ndarray, key: str, image_id: int) -> dict:
    """The masks in SA-1B's schema (arXiv:2304.02643); ids are unique over all scenes."""
    (_, height, width), annotations = masks.shape, []
    for number, mask in enumerate(masks):
        rle: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))  # its stub takes the bytes for text
        y, x = np.nonzero(mask)
        centre = ((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin()  # a star or a ring may not hold its mean
        annotations.append({
            "id": image_id * 8 + number,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": len(y),
            "predicted_iou": 1.0, "stability_score": 1.0,  # drawn, not predicted
            "point_coords": [[float(x[centre]), float(y[centre])]],
            "crop_box": [0.0, 0.0, float(width), float(height)],
        })  # fmt: skip
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"{key}.jpg"}
    return {"image": image, "annotations": annotations}
