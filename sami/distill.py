"""Distilling SAM's image encoder into a small one (MobileSAM, arXiv:2306.14289; RepViT-SAM, arXiv:2312.05760).

python -m sami.distill
python -m sami.cache write cache.path=/cache cache.kind=maps teacher=sam_vit_h teacher.weights=sam_vit_h_4b8939.pth \
    data=shards data.train='"/data/sa1b/sa_{000000..000009}.tar"' data.val=/data/sa1b_val notice=null
python -m sami.distill +experiment=distill/tiny_vit_5m teacher.path=/cache decoder_checkpoint=sam_vit_h_4b8939.pth \
    data.train='"/data/sa1b/sa_{000000..000009}.tar"' data.val=/data/sa1b_val
python -m sami.distill +experiment=distill/tiny_vit_5m name=both students=[tiny_vit_5m,repvit_m1_1] ...

The same command again continues the run.
"""

import hydra
from omegaconf import DictConfig

from sami.cache.teacher import CachedTeacher
from sami.entry import explain_errors, flatten
from sami.methods.progress import say
from sami.methods.segmenter import file_digest
from sami.methods.students import StudentsExport
from sami.run import FREE, prepare, train

FREE_HERE = FREE | {
    *("method.teacher", "method.protocol", "method.start"),  # their own sections say what they are
    *("method.checkpoint_activations", "data.num_val_masks", "decoder_checkpoint", "init"),  # contents stand for files
    *("teacher.weights", "teacher.checkpoint", "teacher.max_batch", "teacher.path", "data.cache"),
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="distill")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `distill`."""
    with explain_errors():
        distill(cfg)


def distill(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    contract = flatten(cfg, without=FREE_HERE)
    contract |= {"photos": data.train_source.fingerprint, "teacher weights": method.teacher.fingerprint}
    contract |= {"decoder_checkpoint": file_digest(cfg.decoder_checkpoint)}
    contract |= {f"init.{name}": file_digest(file) for name, file in (cfg.init or {}).items()}
    if isinstance(method.teacher, CachedTeacher):
        say(f"targets of {method.teacher.description}")
    recipe = {name: str(value) for name, value in contract.items() if name.startswith(("method.", "teacher"))}
    export = StudentsExport(cfg.run_dir, recipe=recipe)
    train(cfg, data, method, contract=contract, export=export, results="the segmenter, curves and numbers")


if __name__ == "__main__":
    main()
