"""Fine-tuning EfficientSAM on photos with masks (arXiv:2312.00863, Sec. 4.1).

python -m sami.finetune
python -m sami.finetune +experiment=finetune/vit_s model.backbone=runs/vit_s/backbone.safetensors \
    data.train='"/data/sa1b/sa_{000000..000999}.tar"'
python -m sami.finetune +experiment=finetune/vit_s data=coco data.train.annotations=/coco/train.json \
    data.train.images=/coco/train model.backbone=...
torchrun --nproc_per_node=8 -m sami.finetune +experiment=finetune/vit_s ...

The same command again continues the run.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from sami.callbacks.weights_export import SegmenterExport
from sami.cli import explain_errors, flatten
from sami.models.checkpoints import file_digest
from sami.training import FREE, prepare, train

FREE_HERE = FREE | {
    *("method.model", "method.protocol"),  # their own sections say what they are
    *("method.checkpoint_activations", "method.validate_zoomed", "data.num_val_masks"),
    *("model.checkpoint", "model.backbone", "model.decoder_checkpoint"),  # their contents stand for them
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="finetune")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `finetune`."""
    with explain_errors():
        finetune(cfg)


def finetune(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    contract = flatten(cfg, without=FREE_HERE) | {"photos": data.train_source.fingerprint}
    for file in ("checkpoint", "backbone", "decoder_checkpoint"):
        contract[f"model.{file}"] = file_digest(cfg.model[file])
    recipe = {name: str(value) for name, value in contract.items() if name.startswith(("model.", "method."))}
    export = SegmenterExport(str(Path(cfg.run_dir, "segmenter.safetensors")), recipe=recipe)
    train(cfg, data, method, contract=contract, export=export, results="the segmenter, curves and numbers")


if __name__ == "__main__":
    main()
