"""Computes a teacher's targets once and writes them to disk, for training to read in every epoch.

    python -m sami.cache plan +experiment=vit_s cache.path=/cache data.train='"/data/imagenet/train-{0000..1023}.tar"'
    python -m sami.cache write ...      # the same arguments; again after an interruption
    python -m sami.cache verify ...     # the same arguments
    python -m sami.pretrain +experiment=vit_s teacher=cached teacher.path=/cache ...

Under torchrun or in a SLURM array, the processes of `write` share the work.
"""

import os
import sys
import threading
from functools import cached_property
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sami.cache.codec import FAITHFUL
from sami.cache.disk import check_space
from sami.cache.layout import own_share
from sami.cache.manifest import MANIFEST, read_manifest
from sami.cache.plan import print_estimate
from sami.cache.split import CacheOptions, CacheSplit, RunningTeacher
from sami.cache.teacher import CachedTeacher
from sami.cache.verify import crop_error, find_damage, recompute
from sami.cache.views import ViewsToCache
from sami.cache.write import write_split
from sami.cli import quiet_lightning
from sami.commands import run_command
from sami.data.pretraining import PretrainingData
from sami.models.pixel_teachers import HogTeacher, PixelTeacher
from sami.ops.cpu_kernels import keep_freed_memory
from sami.preemption import on_signal


class Job:
    """What all three commands need: options, images, teacher, and its splits.

    Raises:
        ValueError: see `CacheOptions` and `CacheSplit`; or the teacher is itself a cache.
    """

    def __init__(self, cfg: DictConfig) -> None:
        if cfg.teacher._target_ == f"{CachedTeacher.__module__}.{CachedTeacher.__name__}":
            raise ValueError("teacher=cached is what a cache is used with; to make one, choose the teacher it replaces")
        self.cfg = cfg
        self.options = CacheOptions(**cfg.cache)
        self.names = ("train", "val") if cfg.data.get("val", True) else ("train",)  # the built-in images have both

    @cached_property
    def data(self) -> PretrainingData:
        """The images."""
        return instantiate(self.cfg.data)

    @cached_property
    def running(self) -> RunningTeacher:
        """The teacher on its device: under torchrun and srun each process has a GPU of its own."""
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        gpus = torch.cuda.device_count()
        device = torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")
        if gpus:
            torch.cuda.set_device(device)  # for what asks for the current one: events, pinned memory
        teacher = instantiate(self.cfg.teacher)
        if isinstance(teacher, (PixelTeacher, HogTeacher)):
            raise ValueError("targets made of pixels need no cache: computing them costs less than reading them")
        return RunningTeacher(teacher, precision=self.options.precision, device=device)

    @cached_property
    def splits(self) -> list[CacheSplit]:
        """One for each split."""
        settings = OmegaConf.to_container(self.cfg.teacher, resolve=True)
        assert isinstance(settings, dict)
        settings = {str(name): value for name, value in settings.items() if name not in ("weights", "max_batch")}
        data, whole = self.data, self.options.kind == "maps"
        seen = {"image_size": self.options.map_size if whole else data.image_size, "seed": data.seed, "whole": whole}
        splits = []
        for name, source in zip(self.names, [data.train_source, *data.val_sources.values()], strict=True):
            views = ViewsToCache(source, crops=data.crops if name == "train" else None, **seen)
            splits.append(CacheSplit(name, self.options, views, self.running.network, settings))
        return splits


def estimate(job: Job) -> None:
    """Prints what the cache will cost, and refuses it where the disk is too small."""
    for split in job.splits:
        split.check_claim()
    epochs = job.cfg.schedule.epochs
    print_estimate(job.splits, job.running, num_batches=job.cfg.plan_batches, epochs=epochs)
    check_space(job.splits)


def write(job: Job) -> None:
    """Writes this process's share of the cache; the last process to finish completes it.

    Asked to stop (SIGTERM, SIGUSR1, Ctrl-C) it leaves with `EXIT_REQUEUE`; the same command continues.
    """
    check_space(job.splits)
    share, basis, stop = own_share(), None, threading.Event()
    on_signal(stop.set)
    for split in job.splits:
        recipe = split.claim(job.running, basis)
        basis = recipe["basis"]
        work = write_split(split, job.running, recipe, share, stop)
        missing = split.finish()
        if work.views:
            rate = work.views / work.seconds
            print(f"{split.name}: {work.views} targets written, {rate:,.1f}/s, teacher idle {work.idle:.1%}")
        if missing:
            print(f"{split.folder}: this process's share is complete; {missing} shards of others are not there yet")
        else:
            print(f"{split.folder} is complete")
            tell_what_is_missing(split)


def tell_what_is_missing(split: CacheSplit) -> None:
    """Says which images of a complete split have no target, and whether storing lost more than it should."""
    manifest = read_manifest(split.folder)
    skipped = [pair for shard in manifest["shards"].values() for pair in shard["skipped"].items()]
    if skipped:
        print(f"{len(skipped)} targets are missing, the first of {skipped[0][0]} ({skipped[0][1]}).")
        print(f"{split.folder / MANIFEST} lists all. To try these images again delete their shards, and write again")
    worst = manifest["error"]["worst_cosine"]
    if manifest["basis"] is None and worst < FAITHFUL:
        print(
            f"stored targets have a cosine of {worst:.4f} to the exact ones at worst: see `python -m sami.cache plan`"
        )


def verify(job: Job) -> None:
    """Checks every checksum, then some targets against the teacher.

    Raises:
        ValueError: damage, listed before; or see `recompute`.
    """
    damage = 0
    for name in job.names:
        for line in find_damage(Path(job.options.path, name)):
            print(line)
            damage += 1
    if damage:
        raise ValueError(
            f"{damage} places are damaged, listed above. Delete these shards (the .tar files): the same command with "
            "`write` makes them anew, and leaves the others as they are"
        )
    print("all records match their checksums")
    for split in job.splits if job.cfg.verify_images > 0 else ():
        found = recompute(split, job.running, job.cfg.verify_images)
        print(
            f"{split.name}: {found.num_views} targets computed again: cosine {found.cosine:.6f}, explained variance "
            f"{found.explained_variance:.6f}, largest relative error {found.worst_relative_error:.5f}: within the bound"
        )
    if job.cfg.verify_images > 0 and job.options.kind == "maps":
        print("targets of random crops, cut from maps (an approximation), against the teacher's answer to the crops:")
        crops = crop_error(job.splits[0], job.data, job.running, job.cfg.verify_images)
        for name, (cosine, explained) in crops.items():
            print(f"  {name}: cosine {cosine:.4f}, explained variance {explained:.4f}")


COMMANDS = {"plan": estimate, "write": write, "verify": verify}


def run(cfg: DictConfig) -> None:
    """Runs the command that `cfg` names."""
    quiet_lightning()
    keep_freed_memory()
    COMMANDS[cfg.command](Job(cfg))


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else "nothing"
    if given in COMMANDS:
        sys.argv[1] = f"command={given}"
    elif not {"-h", "--help"} & set(sys.argv):
        print(f"python -m sami.cache {'|'.join(COMMANDS)} ...: {given} given; --help says more", file=sys.stderr)
        sys.exit(2)
    run_command("cache", run)
