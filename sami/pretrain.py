"""SAMI pretraining: a small ViT learns, from a quarter of the patches, the features that SAM sees in all
(arXiv:2312.00863).

    python -m sami.pretrain
    python -m sami.pretrain +experiment=vit_s data.train='"/data/imagenet/train-{0000..1023}.tar"'
    python -m sami.pretrain +experiment=vit_s data=images_folder data.root=/data/images
    torchrun --nproc_per_node=8 -m sami.pretrain +experiment=vit_s ...

The same command again continues the run.
"""

from sami.commands import run_command
from sami.training import train

if __name__ == "__main__":
    run_command("pretrain", train)
