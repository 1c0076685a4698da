"""Images with masks small enough to be made on the spot, in every format that is read."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
from conftest import draw_image, encode
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 48, 64


def draw_masks(seed: int, count: int, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """bool [count, H, W]: discs of some size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    unit = min(height, width) / 48
    discs = [(rng.uniform(8, height - 8), rng.uniform(8, width - 8), rng.uniform(8, 14) * unit) for _ in range(count)]
    return np.stack([(y - cy) ** 2 + (x - cx) ** 2 < r**2 for cy, cx, r in discs])


def draw_scene(seed: int, masks: np.ndarray) -> np.ndarray:
    """An image in which the masks are to be seen: each a colour of its own on waves."""
    rng = np.random.default_rng(seed + 1000)
    image = draw_image(seed, height=masks.shape[1], width=masks.shape[2]) // 2
    for mask in masks:
        image[mask] = rng.integers(0, 255, 3)
    return image


def rle(mask: np.ndarray) -> dict:
    """COCO's compressed code, as JSON has it."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def sa1b_record(seed: int, masks: np.ndarray) -> bytes:
    """A JSON file of SA-1B."""
    image = {"image_id": seed, "height": masks.shape[1], "width": masks.shape[2], "file_name": f"sa_{seed}.jpg"}
    annotations = [{"id": i, "segmentation": rle(mask), "area": int(mask.sum())} for i, mask in enumerate(masks)]
    return json.dumps({"image": image, "annotations": annotations}).encode()


def sa1b_files(seed: int, *, height: int = HEIGHT, width: int = WIDTH) -> dict[str, bytes]:
    """The two files of one image, by name."""
    masks = draw_masks(seed, 1 + seed % 4, height=height, width=width)
    image = encode(draw_scene(seed, masks), quality=95)
    return {f"sa_{seed}.jpg": image, f"sa_{seed}.json": sa1b_record(seed, masks)}


def write_sa1b_folder(root: Path, num_images: int, *, first: int = 0) -> Path:
    """A folder in SA-1B's layout."""
    root.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + num_images):
        for name, content in sa1b_files(seed).items():
            (root / name).write_bytes(content)
    return root


def write_sa1b_tars(root: Path, counts: list[int], *, images_first: bool = False) -> list[str]:
    """Tars as Meta distributes them, images numbered through; with all of them before all masks if asked."""
    root.mkdir(parents=True, exist_ok=True)
    paths, seed = [], 0
    for number, count in enumerate(counts):
        files = {name: data for s in range(seed, seed + count) for name, data in sa1b_files(s).items()}
        seed += count
        names = sorted(files, key=lambda name: name.endswith("json")) if images_first else list(files)
        paths.append(str(root / f"sa_{number:06d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for name in names:
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(files[name])
                tar.addfile(member, BytesIO(files[name]))
    return paths


def write_coco(root: Path, num_images: int) -> Path:
    """`images/` and `instances.json`: polygons, both codes, a crowd, and an image without objects."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for seed in range(num_images):
        masks = draw_masks(seed, 4)
        (root / "images" / f"{seed:04d}.jpg").write_bytes(encode(draw_scene(seed, masks), quality=95))
        images.append({"id": 7 * seed, "file_name": f"{seed:04d}.jpg", "height": HEIGHT, "width": WIDTH})
        if seed == 1:
            continue
        triangle = [[10.5, 5.0, 40.0, 9.5, 22.25, 40.0], [45.0, 30.0, 60.0, 30.0, 60.0, 45.0, 45.0, 45.0]]
        runs = {"size": [HEIGHT, WIDTH], "counts": uncompressed(masks[1])}
        for number, segmentation in enumerate((triangle, runs, rle(masks[2]), rle(masks[3]))):
            annotations.append(
                {"id": len(annotations), "image_id": 7 * seed, "segmentation": segmentation, "iscrowd": number // 3}
            )
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


def uncompressed(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, the first of zeros."""
    pixels = mask.T.ravel()
    changes = np.flatnonzero(np.diff(pixels)) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(pixels)]])).tolist()
    return [0, *lengths] if pixels[0] else lengths
