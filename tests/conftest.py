"""Images and shards small enough to be made on the spot; nothing is downloaded, nothing needs a GPU."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"


def draw_image(seed: int, *, height: int = 48, width: int = 64, grain: float = 16) -> np.ndarray:
    """A smooth colour image that differs from any other seed's: uint8 [H, W, 3], waves of some `grain` pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / grain
    waves = [np.sin(rng.uniform(0.5, 2) * x + rng.uniform(0.5, 2) * y + rng.uniform(0, 6)) for _ in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


def encode(pixels: np.ndarray, extension: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, extension, **options)
    return buffer.getvalue()


def write_folder(root: Path, num_images: int, *, num_classes: int = 2) -> Path:
    """`root/class_k/image_i.jpg`."""
    for number in range(num_images):
        path = root / f"class_{number % num_classes}" / f"image_{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw_image(number)))
    return root


def write_shards(root: Path, counts: list[int]) -> list[str]:
    """One shard for each count, images numbered through."""
    root.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(counts):
        paths.append(str(root / f"train-{shard:03d}.tar"))
        with webdataset.TarWriter(paths[-1], encoder=False) as tar:
            for _ in range(count):
                image, label = encode(draw_image(number)), str(number % 2).encode()
                tar.write({"__key__": f"image_{number:04d}", "jpg": image, "cls": label})
                number += 1
    return paths


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard indexes stay in the test's folder."""
    monkeypatch.setenv("SAMI_CACHE", str(tmp_path / "cache"))
