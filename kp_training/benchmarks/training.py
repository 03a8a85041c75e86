"""What training costs on this machine: a few steps of a stage through the training loop, beside its loader alone."""

from __future__ import annotations

import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as lightning
import numpy as np
import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader

from kp_frontend.errors import InputError
from kp_frontend.isolated import Ended, call_isolated
from kp_frontend.progress import Progress
from kp_frontend.replay.summary import Percentiles
from kp_training.benchmarks.memory import forget_peak, resident
from kp_training.callbacks import AfterStep, ignore_interrupt, quiet_lightning, worker_errors
from kp_training.data import open_images
from kp_training.data.images import Images
from kp_training.data.synthetic_shapes import SyntheticShapes
from kp_training.methods import find_method
from kp_training.methods.base import Stage
from kp_training.runs import build_run
from kp_training.train_config import TrainConfig
from kp_training.training import EndlessBatches, Machine, Trained, context_of, trainer_of

WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """What to measure: `steps` of the stage of that name, after the warm-up.

    settings: of the method and of the loop.  data: specs as ``train`` takes them.  batch_size: 0 = the stage's own.
    """

    method: str
    stage: str
    settings: dict[str, Any]
    data: tuple[str, ...]
    device: str = "auto"
    steps: int = 8
    batch_size: int = 0


@dataclass(frozen=True)
class Figures:
    """What a Case costs.

    height, width: of the views in pixels.  own_batch: the stage's, where the batch had to be cut.
    images: views a second through training, and `loader_images` through the loader alone, with `workers` processes.
    step: milliseconds.  memory: peak in MB, above that before the network was made (CPU) or of the GPU's allocator;
    loader processes are not counted.
    waiting, augmenting: share of the time in which training waits for the loader, and in which the device warps
    and lights.  labelled_images: photographs a second that an earlier stage's network labels, None where none does.
    """

    method: str
    variant: str
    stage: str
    device: str
    height: int
    width: int
    batch: int
    own_batch: int
    images: float
    step: Percentiles
    memory: float
    waiting: float
    augmenting: float
    loader_images: float
    workers: int
    labelled_images: float | None


def stages_of(method: str, settings: dict[str, Any]) -> list[str]:
    """The stages worth measuring: the first, and the last, which has the whole network.

    Raises InputError where the method does not take the settings.
    """
    run = build_run(Path(), method, [], settings)
    return list(dict.fromkeys([run.stages[0].name, run.stages[-1].name]))


def takes(method: str, setting: str) -> bool:
    """Whether the method's own configuration has a setting of this name."""
    return setting in find_method(method).Config.__dataclass_fields__


def measure(case: Case, progress: Progress) -> Figures:
    """Train a few steps in this process, which should do nothing else before or after.

    Raises MemoryError where there is too little, InputError for what cannot be used.
    """
    quiet_lightning()
    cv2.setNumThreads(0)
    machine = Machine.here(case.device)
    device = machine.device()
    count = WARM_UP + case.steps
    # Nothing is saved or validated on the way.
    loop = {"steps": count, "save_every": 10**9, "validate_every": 10**9}
    batch = {"batch_size": case.batch_size} if case.batch_size else {}
    with tempfile.TemporaryDirectory() as folder, _memory_errors(device), worker_errors():
        run = build_run(Path(folder), case.method, list(case.data), case.settings | loop | batch)
        stage = next(stage for stage in run.stages if stage.name == case.stage)
        config, images = run.configs[stage.name], _Counted(open_images(case.data))
        before = resident("VmRSS")
        module = Measured(stage, config, machine)
        module.context = replace(context_of(run, stage, machine, images), cache=Path(folder),
                                 trained=_untrained(run.stages, device))
        clock = Clock(module, count, progress)
        trainer_of(run, config, machine, [clock]).fit(module)
        memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident("VmHWM") - before
        loader_items = loading_speed(module.dataset, config.batch_size, config.loader_workers)
    step = np.diff(clock.ends)[WARM_UP - 1 :]
    views = module.views * config.batch_size * config.accumulate
    return Figures(
        case.method, run.method.variant, stage.name, str(device), *module.size, config.batch_size,
        TrainConfig(**stage.training).batch_size, views / float(step.mean()),
        Percentiles.of(1e3 * step), memory, clock.share(clock.waited), clock.share(clock.augmented),
        module.views * loader_items, config.loader_workers, images.read / module.preparing if images.read else None,
    )


def measure_isolated(case: Case, progress: Progress) -> Figures:
    """`measure` in a fresh process, with half the batch as often as memory does not do.

    Raises InputError for what cannot be used, and where one item is too much.
    """
    while True:
        try:
            return call_isolated(measure, case, progress=progress)
        except (MemoryError, Ended) as error:
            if isinstance(error, Ended) and error.code != -signal.SIGKILL:
                raise
            batch = case.batch_size or _own_batch(case)
            if batch == 1:
                raise InputError(f"{case.method} {case.stage} needs more memory than there is, even for a batch of 1; "
                                 "give a smaller --size") from error
            case = replace(case, batch_size=batch // 2)


def _own_batch(case: Case) -> int:
    return build_run(Path(), case.method, [], case.settings).configs[case.stage].batch_size


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """MemoryError for what torch raises; on a CPU before the system runs out and kills what it likes."""
    if device.type == "cpu":
        limit = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from error


class Measured(Trained):
    """Trained, with the time that it waits for data and that it spends on augmentation.

    waited, augmented, preparing: seconds; the last one of making the dataset.  views, size: see `_views`.
    """

    waited = augmented = preparing = 0.0
    views, size = 1, (0, 0)

    def train_dataloader(self) -> Any:
        begin = time.perf_counter()
        loader = super().train_dataloader()
        self.preparing = time.perf_counter() - begin
        forget_peak(self.device)
        return _Timed(loader, self)

    def on_after_batch_transfer(self, batch: Any, number: int) -> Any:
        begin = _now(self.device)
        batch = super().on_after_batch_transfer(batch, number)
        self.augmented += _now(self.device) - begin
        self.views, self.size = _views(batch)
        return batch


class Clock(AfterStep):
    """When each optimizer step ended, in seconds, and what `module` had waited and augmented by then."""

    def __init__(self, module: Measured, count: int, progress: Progress) -> None:
        self.module, self.count, self.progress = module, count, progress
        self.ends: list[float] = []
        self.waited: list[float] = []
        self.augmented: list[float] = []

    def after_step(self, trainer: lightning.Trainer, module: Any) -> None:
        self.ends.append(_now(module.device))
        self.waited.append(self.module.waited)
        self.augmented.append(self.module.augmented)
        self.progress(len(self.ends), self.count)

    def share(self, seconds: list[float]) -> float:
        """Of the time after the warm-up."""
        return (seconds[-1] - seconds[WARM_UP - 1]) / (self.ends[-1] - self.ends[WARM_UP - 1])


class _Timed:
    """`loader`, telling `module` how long it is waited for."""

    def __init__(self, loader: DataLoader, module: Measured) -> None:
        self.loader, self.module = loader, module

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            self.module.waited += time.perf_counter() - begin
            yield batch


class _Counted:
    """`images`, counting how many were read by this process."""

    def __init__(self, images: Images) -> None:
        self.images, self.identity, self.read = images, images.identity, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        self.read += 1
        return self.images[index]


def _untrained(stages: tuple[Stage, ...], device: torch.device) -> Callable[[str], nn.Module]:
    """Networks of earlier stages as they begin: they label as fast as when they are trained."""
    return lambda name: next(stage for stage in stages if stage.name == name).network().eval().to(device)


def loading_speed(dataset: Any, batch_size: int, workers: int, batches: int = 8) -> float:
    """Items a second of `dataset` with so many loader processes and nothing else to do."""
    loader = DataLoader(dataset, num_workers=workers, worker_init_fn=ignore_interrupt,
                        batch_sampler=EndlessBatches(0, 1, batch_size))
    each = iter(loader)
    next(each)
    begin = time.perf_counter()
    count = max(batches, 4 * workers)  # what was loaded ahead while the first came weighs little then
    for _ in range(count):
        next(each)
    return count * batch_size / (time.perf_counter() - begin)


def _views(batch: Any) -> tuple[int, tuple[int, int]]:
    """How many images an item of a batch (a NamedTuple with ``image…`` B×C×H×W) has, and their height and width."""
    images = [getattr(batch, name) for name in batch._fields if name.startswith("image")]
    return len(images), tuple(images[0].shape[-2:])


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def drawing_speed(count: int, progress: Progress) -> float:
    """Synthetic shapes a second, 160×120, in one process."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    shapes = SyntheticShapes()
    begin = time.perf_counter()
    for number in range(count):
        shapes[number]
        progress(number + 1, count)
    return count / (time.perf_counter() - begin)
