"""SAMI pretraining (arXiv:2312.00863).

python -m sami.pretrain
python -m sami.pretrain +experiment=vit_s data.train='"/data/imagenet/train-{0000..1023}.tar"'
python -m sami.pretrain +experiment=vit_s data=image_folder data.root=/data/images
torchrun --nproc_per_node=8 -m sami.pretrain +experiment=vit_s ...

The same command again continues the run.
"""

import hydra
from omegaconf import DictConfig

from sami.cache.teacher import CachedTeacher
from sami.cli import explain_errors, print0
from sami.training import prepare, train


@hydra.main(version_base="1.3", config_path="../conf", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `pretrain`."""
    with explain_errors():
        pretrain(cfg)


def pretrain(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    if isinstance(method.teacher, CachedTeacher):
        print0(f"targets of {method.teacher.description}")
    train(cfg, data, method, results="the backbone, curves and numbers")


if __name__ == "__main__":
    main()
