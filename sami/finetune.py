"""Fine-tuning EfficientSAM on images with masks (arXiv:2312.00863, Sec. 4.1).

python -m sami.finetune
python -m sami.finetune +experiment=finetune/vit_s model.backbone=runs/vit_s/backbone.safetensors \
    data.train='"/data/sa1b/sa_{000000..000999}.tar"'
python -m sami.finetune +experiment=finetune/vit_s data=coco data.train.annotations=/coco/train.json \
    data.train.images=/coco/train model.backbone=...
torchrun --nproc_per_node=8 -m sami.finetune +experiment=finetune/vit_s ...

The same command again continues the run.
"""

import hydra
from omegaconf import DictConfig

from sami.cli import explain_errors, print0
from sami.evaluation.prompted import MEASURED_ON
from sami.training import prepare, train


@hydra.main(version_base="1.3", config_path="../conf", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `finetune`."""
    with explain_errors():
        finetune(cfg)


def finetune(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    if data.validates:
        print0(MEASURED_ON)
    train(cfg, data, method, results="the segmenter, curves and numbers")


if __name__ == "__main__":
    main()
