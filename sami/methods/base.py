"""What all ways of training share: run length, optimiser, logging, frozen parts, and what callbacks ask of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sami.cache.teacher import CachedTeacher
from sami.clock import StageClock
from sami.methods.optimizer import parameter_groups
from sami.methods.schedule import RunLength, lr_factor
from sami.methods.target_statistics import ChannelStatistics
from sami.models.build import description
from sami.models.sam import Sam

Cell = Tensor | tuple[Tensor, Tensor]  # an image, uint8 [3, H, W], or one and masks on it, bool [Q, H, W]


class Pictures(NamedTuple):
    """What to look at of a validation set: columns by title, a row for each image."""

    name: str  # of the set, "" where there is one
    columns: Mapping[str, Sequence[Cell] | Tensor]


class Curve(NamedTuple):
    """A number over steps, by its name in `metrics.csv`."""

    metric: str
    label: str
    color: str | None = None  # of matplotlib
    level: bool = False  # the last value alone, as a dashed line: what a number is to be compared with


class Panel(NamedTuple):
    """One plot. What lies beyond the limits is cut off."""

    title: str
    curves: list[Curve]
    log: bool = False
    limits: tuple[float, float] | None = None


def panels(metrics: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> list[Panel]:
    """One panel for each title, of the metrics whose last part is among its kinds; the teacher's own are levels."""
    found, shown = [], [metric for metric in metrics if metric.startswith(("train/", "val/"))]
    for title, names in kinds.items():
        own = [metric for metric in shown if metric.rpartition("/")[2] in names]
        levels = ["/of_teacher/" in metric for metric in own]
        curves = [Curve(m, m, "grey" if level else None, level) for m, level in zip(own, levels, strict=True)]
        # before training, features are off by any factor; what follows is worth seeing
        limits = (-0.5, 1.0) if title == "explained variance" else None
        found.append(Panel(title, curves, log="loss" in title, limits=limits))
    return found


class WeightsFile(NamedTuple):
    """What is written with every checkpoint: tensors by name, and strings for the file's header."""

    weights: Mapping[str, Tensor]
    metadata: dict[str, str]


def segmenter_file(model: Sam) -> WeightsFile:
    """A whole segmenter; `build_sam(checkpoint=path)` loads it."""
    return WeightsFile(model.state_dict(), {"sam": description(model)})


class Method(pl.LightningModule):
    """Base class of the ways of training: AdamW with one schedule, on data of any kind.

    `configure` has to be called before training.

    Args:
        frozen: networks that are used as they are: no submodules, so neither saved, broadcast nor optimised.
        weight_decay: of matrices, see `parameter_groups`.
        betas: of AdamW.
        layer_decay: see `parameter_groups`.
    """

    decay: ClassVar[str] = "cosine"  # of the learning rate, see `lr_factor`
    rest: ClassVar[str] = "student"  # what the time outside of the clock's stages is spent on
    results: ClassVar[str] = "the segmenter, curves and numbers"  # what lies in a run's folder at the end
    # Settings that may differ when a run is continued: where things lie, which machine, what is shown. All others, also
    # those that nobody thought of, are part of the contract.
    free_settings: ClassVar[frozenset[str]] = frozenset(
        {
            *("name", "run_dir", "notice", "trainer", "callbacks", "logger"),
            *("validate_every_epochs", "checkpoint_every_minutes", "checkpoint_every_n_steps", "schedule.batch_size"),
            *("data.train", "data.val", "data.folder", "data.num_workers", "data.val_batch_size"),
        }
    )
    run_length: RunLength

    def __init__(
        self, *frozen: nn.Module, weight_decay: float, betas: tuple[float, float], layer_decay: float = 1.0
    ) -> None:
        super().__init__()
        self._frozen: tuple[Any, ...] = frozen  # a tuple hides them from torch
        self.weight_decay, self.betas, self.layer_decay = weight_decay, (betas[0], betas[1]), layer_decay
        self.statistics: nn.Module = nn.Identity()  # or `ChannelStatistics` of the teacher's targets
        self.clock = StageClock()
        self.recent: list[Tensor] = []

    # What a subclass says

    def networks(self) -> Iterable[nn.Module]:
        """What the optimiser trains, the parameters that require gradients."""
        raise NotImplementedError

    def frozen_parts(self) -> Iterable[nn.Module]:
        """Parts of the networks that stay as they are, and in evaluation mode."""
        return ()

    def exports(self) -> dict[str, WeightsFile]:
        """The files of weights that the run is for, by name."""
        raise NotImplementedError

    def curves(self, metrics: Sequence[str]) -> list[Panel]:
        """How to draw a run's numbers, of which `metrics` are the names."""
        raise NotImplementedError

    def validation_pictures(self, num_images: int, num_masks: int) -> Iterator[Pictures]:
        """What to look at after a validation, of up to so many images of each set and masks of each image."""
        raise NotImplementedError

    def contract(self, settings: dict[str, Any], data: Any) -> dict[str, Any]:
        """What a continued run must share, by name: `settings` are the run's by dotted name, without the free ones."""
        # classes go by their name, wherever they lie
        short = {name: str(value).rpartition(".")[2] for name, value in settings.items() if name.endswith("_target_")}
        return {**settings, **short, "images": data.train_source.fingerprint}

    def remark(self, data: Any) -> str | None:
        """A line to print before training: where targets come from, if they were computed before."""
        cached = [part for part in self._frozen if isinstance(part, CachedTeacher)]
        return f"targets of {cached[0].description}" if cached else None

    # What Lightning and the methods call

    @property
    def teacher(self) -> Any:
        """The first of what is frozen, of methods that learn from a teacher."""
        return self._frozen[0]

    @property
    def data(self) -> Any:
        """The data module of this stage."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]  # Lightning sets it from outside

    @property
    def batches_per_log(self) -> int:
        """Batches between two numbers of the same name; Lightning counts steps."""
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # set from outside, too
        return every * self.trainer.accumulate_grad_batches

    def on_fit_start(self) -> None:
        self.measure_statistics()

    def on_validation_start(self) -> None:
        self.measure_statistics()

    def measure_statistics(self) -> None:
        """The target's, once, unless a checkpoint brought them: so not before one could have been loaded."""
        if isinstance(self.statistics, ChannelStatistics):
            self.statistics.measure(self.data, self.teacher, device=self.device)

    def configure(self, run_length: RunLength) -> None:
        """Takes the numbers that follow from data and devices."""
        self.run_length = run_length

    def setup(self, stage: str) -> None:
        """Lightning moves its submodules to the device; what is frozen is none."""
        device = self.trainer.strategy.root_device
        for module in self._frozen:
            module.to(device)
        self.clock.on_gpu = device.type == "cuda"

    def check_frame(self, model: Sam) -> None:
        """Raises ValueError where data and model disagree about what the model sees."""
        spec = self.data.spec
        if (spec.image_size, spec.resize_mode) != (model.image_size, model.resize_mode):
            raise ValueError(
                f"the data has image_size={spec.image_size} and resize_mode={spec.resize_mode}, the model "
                f"{model.image_size} and {model.resize_mode}: set both alike"
            )

    def train(self, mode: bool = True) -> "Method":
        """Frozen parts stay in evaluation mode: no drop path, no running statistics."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    def watch(self, values: Tensor, batch_idx: int) -> Tensor | None:
        """The mean of `values` since the last time, every `log_every_n_steps` steps, else None. Logs rate and epoch."""
        self.recent.append(values.detach())
        if (batch_idx + 1) % self.batches_per_log:
            return None
        mean = torch.stack(self.recent).mean(dim=0)
        self.recent.clear()
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        self.log("train/lr", rates[-1])  # of the layers that learn fastest
        self.log("train/epoch", self.trainer.global_step / self.run_length.steps_per_epoch)
        return mean

    def touch_unused(self) -> Tensor:
        """Zero, made of every trainable parameter: data-parallel training waits for a gradient of each, used or not."""
        return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and decay, stepped every optimiser step."""
        length, options = self.run_length, {"weight_decay": self.weight_decay, "layer_decay": self.layer_decay}
        groups = [group for network in self.networks() for group in parameter_groups(network, lr=length.lr, **options)]
        optimizer = AdamW(groups, lr=length.lr, betas=self.betas, fused=True)

        def factor(step: int) -> float:
            return lr_factor(step, warmup_steps=length.warmup_steps, max_steps=length.max_steps, decay=self.decay)

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
