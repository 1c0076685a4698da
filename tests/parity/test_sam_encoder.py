"""SamTeacher against segment-anything's SamPredictor, on stand-in weights under Meta's names."""

import json
from pathlib import Path

import numpy as np
import torch
from golden.seeded import seeded_array, seeded_image
from PIL import Image

from sami.models.teachers import SamTeacher

GOLDEN = Path(__file__).parent / "golden"
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # SAM's, for pixels in [0, 255]


def sam_input(image: np.ndarray) -> torch.Tensor:
    """uint8 [Ho, Wo, 3] -> [1, 3, 1024, 1024] as SamPredictor.set_image makes it."""
    Ho, Wo = image.shape[:2]
    size = [round(side * 1024 / max(Ho, Wo)) for side in (Wo, Ho)]
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    normalised = (torch.from_numpy(resized.astype(np.float32)) - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    image = torch.zeros(1, 3, 1024, 1024)
    image[:, :, : size[1], : size[0]] = normalised.permute(2, 0, 1)
    return image


def test_embedding_of_sam_vit_b_at_1024(tmp_path):
    shapes = json.loads((GOLDEN / "sam_vit_b.keys.json").read_text())
    weights = {name: torch.from_numpy(seeded_array(name, tuple(shape))) for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "sam_vit_b_01ec64.pth")
    golden = np.load(GOLDEN / "sam_vit_b.npz")

    teacher = SamTeacher("sam_vit_b", weights=str(tmp_path / "sam_vit_b_01ec64.pth"))
    image = sam_input(seeded_image("golden-image-1", *golden["original_size"]))
    features = teacher({"image": image})  # [1, 4096, 256]
    embedding = features.transpose(1, 2).reshape(1, 256, 64, 64)

    torch.testing.assert_close(embedding[:, ::8, ::4, ::4], torch.from_numpy(golden["embedding"]), rtol=0, atol=1e-4)
    whole = embedding.double()
    stats = torch.stack([whole.mean(), whole.std(correction=0), whole.abs().max()])
    torch.testing.assert_close(stats, torch.from_numpy(golden["embedding_stats"]), rtol=0, atol=1e-4)
