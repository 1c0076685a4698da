"""A folder of images to webdataset shards.

    python -m sami.pack source=/images target=/shards short_side=256
    python -m sami.pack source=/imagenet/val target=/shards prefix=val short_side=256 num_workers=8

Subfolders are classes, as in ImageNet. The same command again continues an interrupted run.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../conf", config_name="pack")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `pack_images`."""
    # these bring torch: each worker imports this file, and would wait for it
    from sami.cli import explain_errors
    from sami.packing.pack import pack_images

    with explain_errors():
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        source, target = Path(str(config.pop("source"))), Path(str(config.pop("target")))
        num_packed, num_skipped = pack_images(source, target, **config)
        listed = f", {num_skipped} broken ones are listed in {target / 'skipped.csv'}" if num_skipped else ""
        print(f"{num_packed} images are in {target}{listed}")


if __name__ == "__main__":
    main()
