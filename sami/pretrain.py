"""SAMI pretraining (arXiv:2312.00863).

python -m sami.pretrain
python -m sami.pretrain +experiment=vit_s data.train='"/data/imagenet/train-{0000..1023}.tar"'
python -m sami.pretrain +experiment=vit_s data=images_folder data.root=/data/images
torchrun --nproc_per_node=8 -m sami.pretrain +experiment=vit_s ...

The same command again continues the run.
"""

from omegaconf import DictConfig

from sami.cache.teacher import CachedTeacher
from sami.cli import print0
from sami.commands import run_command
from sami.training import prepare, train


def pretrain(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    if isinstance(method.teacher, CachedTeacher):
        print0(f"targets of {method.teacher.description}")
    train(cfg, data, method, results="the backbone, curves and numbers")


if __name__ == "__main__":
    run_command("pretrain", pretrain)
