#!/usr/bin/env bash
# The paper's line for one model, on one node (arXiv:2312.00863, Sec. 4.1): teacher's targets, SAMI, EfficientSAM.
#   jobs/reproduce.sh 8 vit_s /data/imagenet '"/data/sa1b/sa_{000000..000999}.tar"' /cache
# Each step may be interrupted: the same line again passes over what is done and continues the rest. Disk: 270 GB for the
# cache (4 views of ImageNet, int8). Time: `python -m sami.cache plan` measures your teacher; the rest was not run here.
set -eu
gpus=${1:?GPUS MODEL IMAGENET SA1B CACHE}
model=${2:?vit_t or vit_s}
imagenet=${3:?folder of train-*.tar, as sami.pack writes them}
sa1b=${4:?brace pattern of SA-1B tars, in both quotes}
cache=${5:?folder for the targets of SAM ViT-H}
run() { torchrun --standalone --nproc_per_node="$gpus" -m "$@"; }

shards=$(printf '"%s",' "$imagenet"/train-*.tar)
train="data.train=[${shards%,}]"
run sami.cache write +experiment="$model" cache.path="$cache" "$train"
run sami.pretrain +experiment="$model" teacher=cached teacher.path="$cache" "$train"
run sami.finetune +experiment=finetune/"$model" data.train="$sa1b" \
  model.backbone="${SAMI_RUNS:-runs}/$model/backbone.safetensors"
