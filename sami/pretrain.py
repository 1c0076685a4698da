"""SAMI pretraining (arXiv:2312.00863).

python -m sami.pretrain
python -m sami.pretrain +experiment=vit_s data.train='"/data/imagenet/train-{0000..1023}.tar"'
python -m sami.pretrain +experiment=vit_s data=image_folder data.root=/data/photos
torchrun --nproc_per_node=8 -m sami.pretrain +experiment=vit_s ...

The same command again continues the run.
"""

import hydra
from omegaconf import DictConfig

from sami.cache.teacher import CachedTeacher
from sami.entry import explain_errors, flatten
from sami.methods.checkpoints import WeightsExport
from sami.methods.progress import say
from sami.run import FREE, prepare, train

FREE_HERE = FREE | {
    *("method.encoder", "method.decoder", "method.teacher"),  # their own sections say what they are
    *("method.compile", "teacher.weights", "teacher.max_batch"),
    *("teacher.path", "data.cache", "data.num_views"),  # the cache's recipe and the views per photo stand for them
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """Hydra's door to `pretrain`."""
    with explain_errors():
        pretrain(cfg)


def pretrain(cfg: DictConfig) -> None:
    """Runs or continues the training that `cfg` describes."""
    data, method = prepare(cfg)
    contract = flatten(cfg, without=FREE_HERE)
    contract |= {"photos": data.train_source.fingerprint, "teacher weights": method.teacher.fingerprint}
    contract |= {"views per photo": data.views_per_photo}
    recipe = {name: str(contract[name]) for name in contract if name.startswith(("method.", "teacher.", "decoder."))}
    if isinstance(method.teacher, CachedTeacher):
        say(f"targets of {method.teacher.description}")
    export = WeightsExport(cfg.run_dir, recipe=recipe)
    train(cfg, data, method, contract=contract, export=export, results="the backbone, curves and numbers")


if __name__ == "__main__":
    main()
