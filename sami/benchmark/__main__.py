"""Measures images/s and memory of each stage of pretraining, beside MAE's design, or the speed of segmenters.

    python -m sami.benchmark
    python -m sami.benchmark model=vit_t batch_size=64 precision=bf16 teacher=sam_vit_h
    python -m sami.benchmark stage=segmenter    # EfficientSAM's encoder and decoder
    python -m sami.benchmark stage=encoders     # latency, parameters and multiply-adds of image encoders at 1024

All rows run in turns in one process, so ratios hold on a busy machine too. Share of the matmul rate: operations of
the forward and backward pass (see `StudentStep.count_flops`) per second of the whole step, over the rate of one large
square matrix product in the same run, precision and number of threads.
"""

import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sami.benchmark.cache import CachedBatches, write_drawn
from sami.benchmark.encoders import print_encoders
from sami.benchmark.loading import DrawnImages, Loading, PillowLoading
from sami.benchmark.pretraining import DESIGNS, Setting, StudentStep, measure_memory
from sami.benchmark.segmenter import print_speed
from sami.benchmark.timing import Machine, MatrixProduct, interleave, median_ratio
from sami.cli import choose_device
from sami.commands import run_command
from sami.data.crops import normalize
from sami.data.loading import BatchLoader
from sami.data.sampling import PositionSampler
from sami.ops.cpu_kernels import keep_freed_memory


def run(cfg: DictConfig) -> None:
    """Measures and prints the tables of `cfg.stage`."""
    with TemporaryDirectory(prefix="sami-benchmark-") as folder:
        if cfg.stage == "pretraining":
            benchmark(cfg, Path(folder))
        elif cfg.stage == "segmenter":
            print_speed(choose_machine(cfg), **cfg.segmenter, repetitions=cfg.steps)
        elif cfg.stage == "encoders":
            print_encoders(choose_machine(cfg), image_size=cfg.segmenter.image_size, repetitions=cfg.steps)
        else:
            raise ValueError(f"stage={cfg.stage}: choose pretraining, segmenter or encoders")


def choose_machine(cfg: DictConfig) -> Machine:
    """Precision, device and threads."""
    threads = cfg.threads or torch.get_num_threads()
    return Machine(precision=str(cfg.precision), device=choose_device(cfg.device), threads=threads)


def benchmark(cfg: DictConfig, folder: Path) -> None:
    """Measures and prints the table. A cache is written into `folder`."""
    torch.manual_seed(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    device = choose_device(cfg.device)
    teacher = instantiate(cfg.teacher, **({"weights": "random"} if "weights" in cfg.teacher else {}))
    setting = Setting(
        cfg.model.size,
        cfg.batch_size,
        cfg.model.image_size,
        cfg.mask_ratio,
        target_width=teacher.width,
        precision=str(cfg.precision),
        device=device,
        threads=torch.get_num_threads(),
    )
    teacher.to(device)
    memory = {design: measure_memory(setting, design, cfg.steps) for design in DESIGNS}

    image = setting.images()
    matmul = MatrixProduct(setting)
    steps = {design: StudentStep(setting, design) for design in DESIGNS}

    def teach() -> torch.Tensor:
        with setting.autocast():
            return teacher({"image": image}).float()  # [B, N, E]

    drawn = DrawnImages(64, size=cfg.drawn_size)
    load, load_with_pillow = (
        kind(drawn, batch_size=cfg.batch_size, side=cfg.model.image_size) for kind in (Loading, PillowLoading)
    )

    endless = PositionSampler(batch_size=cfg.batch_size, rank=0, world_size=1, num_batches=10**9, first_batch=0)
    stream = iter(BatchLoader(load.dataset, endless, num_workers=cfg.num_workers))

    def whole_step() -> None:
        batch = {"image": normalize(next(stream)["image"].to(device))}
        with setting.autocast():
            target = teacher(batch).float()
        steps["ours, context all"](batch["image"], target)

    writing = write_drawn(folder, drawn, teacher, setting, num_workers=cfg.num_workers)
    cached = CachedBatches(folder, drawn, setting, num_workers=cfg.num_workers)

    target = teach()
    seconds = interleave(
        {
            "matmul": matmul,
            **{design: partial(step, image, target) for design, step in steps.items()},
            "loader, one core": load,
            "Pillow, one core": load_with_pillow,
            "teacher": teach,
            "whole step": whole_step,
            "whole step, cached": lambda: steps["ours, context all"](*next(cached)),
        },
        cfg.steps,
        device,
    )

    rate = matmul.flops / statistics.median(seconds["matmul"])
    teacher_name = cfg.teacher.get("name", cfg.teacher._target_.rpartition(".")[2])
    print(f"{setting.name}, precision {setting.precision}, batch {cfg.batch_size}, {cfg.model.image_size} pixels")
    print(f"student ViT-{cfg.model.size}, teacher {teacher_name}")
    print(f"matrix product: {rate / 1e9:,.0f} GFLOP/s\n")
    kind = "peak allocated" if device == "cuda" else "growth of peak RSS"
    print(f"{'':24}{'images/s':>10}{'of MAE':>8}{'of matmul rate':>16}   {kind}: after step 2, {cfg.steps} later")
    images = {name: cfg.batch_size / statistics.median(values) for name, values in seconds.items()}  # per second
    for design, step in steps.items():
        ratio = median_ratio(seconds["MAE's design"], seconds[design])
        share = step.count_flops(image, target) / matmul.flops * median_ratio(seconds["matmul"], seconds[design])
        early, late = (f"{peak / 2**20:,.0f} MiB" for peak in memory[design])
        print(f"{design:24}{images[design]:10.1f}{ratio:8.2f}{share:16.2f}   {early}, {late}")
    speedup = median_ratio(seconds["Pillow, one core"], seconds["loader, one core"])
    print(f"\n{'':24}{'images/s':>10}{'of whole step':>15}")
    stages = {"loader, one core": speedup, "teacher": None, "ours, context all": None}
    for name, note in stages.items():
        share = median_ratio(seconds[name], seconds["whole step"])
        print(f"{name:24}{images[name]:10.1f}{share:15.1%}" + (f"   {note:.2f} times Pillow's" if note else ""))
    print(f"{'whole step':24}{images['whole step']:10.1f}{1:15.1%}   {cfg.num_workers} loading processes beside it")
    share = median_ratio(seconds["ours, context all"], seconds["whole step, cached"])
    rate = images["whole step, cached"]
    print(f"{'whole step, cached':24}{rate:10.1f}{'':15}   {share:.2f} of the student's step alone")
    print(f"{'writing a cache':24}{writing.views / writing.seconds:10.1f}{'':15}   teacher idle {writing.idle:.1%}")


if __name__ == "__main__":
    run_command("benchmark", run)
