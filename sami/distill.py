"""Distillation: a small image encoder learns the maps of SAM's, and keeps SAM's decoder (MobileSAM, RepViT-SAM).

    python -m sami.distill
    python -m sami.cache write cache.path=/cache cache.kind=maps teacher=sam_vit_h data=images_shards notice=null \\
        teacher.weights=sam_vit_h_4b8939.pth data.train='"/data/sa1b/sa_{000000..000009}.tar"' data.val=/data/sa1b_val
    python -m sami.distill +experiment=distill/mobile_sam teacher.path=/cache decoder_checkpoint=sam_vit_h_4b8939.pth \\
        data.train='"/data/sa1b/sa_{000000..000009}.tar"' data.val=/data/sa1b_val
    python -m sami.distill +experiment=distill/mobile_sam name=both students=[tiny_vit_5m,repvit_m1_1] ...

MobileSAM is arXiv:2306.14289, RepViT-SAM arXiv:2312.05760.
The same command again continues the run.
"""

from sami.commands import run_command
from sami.training import train

if __name__ == "__main__":
    run_command("distill", train)
