"""Fine-tuning: EfficientSAM learns, from images with masks, to cut out what clicks and boxes show (arXiv:2312.00863).

    python -m sami.finetune
    python -m sami.finetune +experiment=finetune/vit_s model.backbone=runs/vit_s/backbone.safetensors \\
        data.train='"/data/sa1b/sa_{000000..000999}.tar"'
    python -m sami.finetune +experiment=finetune/vit_s data=masks_coco data.train.annotations=/coco/train.json \\
        data.train.images=/coco/train model.backbone=...
    torchrun --nproc_per_node=8 -m sami.finetune +experiment=finetune/vit_s ...

The same command again continues the run.
"""

from sami.commands import run_command
from sami.training import train

if __name__ == "__main__":
    run_command("finetune", train)
