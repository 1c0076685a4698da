"""Packs a folder of images into webdataset shards.

    python -m sami.pack source=/images target=/shards
    python -m sami.pack source=/images target=/shards short_side=256
    python -m sami.pack source=/imagenet/val target=/shards prefix=val short_side=256 num_workers=8

Subfolders are classes, as in ImageNet. The same command again continues an interrupted run.
"""

from pathlib import Path

from omegaconf import DictConfig

from sami.packing.pack import pack_images


def pack(cfg: DictConfig) -> None:
    """Packs the folder that `cfg` names, and says how many images there were."""
    options = {str(name): value for name, value in cfg.items()}
    source, target = Path(str(options.pop("source"))), Path(str(options.pop("target")))
    num_packed, num_skipped = pack_images(source, target, **options)
    listed = f", {num_skipped} broken ones are listed in {target / 'skipped.csv'}" if num_skipped else ""
    print(f"{num_packed} images are in {target}{listed}")


if __name__ == "__main__":
    from sami.commands import run_command  # brings torch: workers import this file, and would wait for it

    run_command("pack", pack)
