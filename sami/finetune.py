"""Fine-tuning EfficientSAM on images with masks (arXiv:2312.00863, Sec. 4.1).

python -m sami.finetune
python -m sami.finetune +experiment=finetune/vit_s model.backbone=runs/vit_s/backbone.safetensors \
    data.train='"/data/sa1b/sa_{000000..000999}.tar"'
python -m sami.finetune +experiment=finetune/vit_s data=masks_coco data.train.annotations=/coco/train.json \
    data.train.images=/coco/train model.backbone=...
torchrun --nproc_per_node=8 -m sami.finetune +experiment=finetune/vit_s ...

The same command again continues the run.
"""

from omegaconf import DictConfig

from sami.cli import print0
from sami.commands import run_command
from sami.evaluation.prompted import MEASURED_ON
from sami.training import prepare, train


def finetune(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    if data.validates:
        print0(MEASURED_ON)
    train(cfg, data, method, results="the segmenter, curves and numbers")


if __name__ == "__main__":
    run_command("finetune", finetune)
