#!/usr/bin/env bash
# One node, any entry point:
#   jobs/torchrun.sh 8 pretrain +experiment=vit_s data.train='"/data/train-{0000..1023}.tar"'
# Asked to leave (SIGTERM), it finishes its step and writes a checkpoint; the same command continues the run.
set -eu
gpus=${1:?jobs/torchrun.sh GPUS ENTRY [overrides]}
entry=${2:?which entry point, e.g. pretrain}
shift 2
exec torchrun --standalone --nproc_per_node="$gpus" -m "sami.$entry" "$@"
