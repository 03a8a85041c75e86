"""The training loop: any method on any pairs, stopped at any step and continued exactly.

Every random draw is a function of (seed, step): item n of the data depends on the seed and n, and each step seeds
torch anew.  So a checkpoint needs no generator states, and a run that was stopped continues as if it had not been.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.pairs import EndlessSampler, HomographyPairs, Images, PairBatch
from kp_training.methods.base import Method
from kp_training.pictures import Pictures
from kp_training.runs import AtomicCheckpoints, Run

PICTURES = 4


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop; a method's ``training_defaults`` come before these, the command line before both.

    schedule: ``cosine`` to 1 % of the rate at `steps`, or ``halve`` at four fifths.  warmup: steps.
    clip: gradient norm, 0 = off.  ema: decay of the averaged weights that are exported, 0 = none.
    precision: ``32`` or ``bf16`` (the network only; losses are always 32 bit).  workers: loader processes.
    save_every, log_every: steps.  held_out_pairs: pairs of unseen images that the final metrics are averaged over.
    """

    steps: int = 20000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 100
    clip: float = 5.0
    ema: float = 0.995
    precision: str = "32"
    seed: int = 0
    workers: int = 1
    save_every: int = 500
    log_every: int = 50
    held_out_pairs: int = 128

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.precision not in ("32", "bf16"):
            raise unknown_name("precision", self.precision, ("32", "bf16"))
        leasts = {"steps": 1, "batch_size": 1, "workers": 0, "save_every": 1, "log_every": 1, "seed": 0,
                  "held_out_pairs": 1}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {least}")


def _cosine(step: int, config: TrainConfig) -> float:
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1)))


def _halve(step: int, config: TrainConfig) -> float:
    return 1.0 if step < 0.8 * config.steps else 0.5


SCHEDULES = {"cosine": _cosine, "halve": _halve}


class Trained(lightning.LightningModule):
    """A method's network, the average of its weights over time, and one step of their training."""

    def __init__(self, method: Method, config: TrainConfig) -> None:
        super().__init__()
        self.method, self.config = method, config
        torch.manual_seed(config.seed)
        self.network = method.network().to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval() if config.ema else None

    @property
    def exported(self) -> nn.Module:
        """The network to export and to evaluate."""
        return self.network if self.average is None else self.average

    def training_step(self, batch: PairBatch, _: int) -> Tensor:
        torch.manual_seed(hash((self.config.seed, self.global_step)) % 2**63)
        losses = self.method.losses(lambda images: self.run(self.network, images), batch)
        if not torch.isfinite(losses["loss"]):
            raise InputError(f"the loss is {losses['loss'].item()} at step {self.global_step}; --resume the run with a "
                             f"lower learning_rate (now {self.config.learning_rate:g}) or clip")
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])
        return losses["loss"]

    def run(self, network: nn.Module, images: Tensor) -> Any:
        """Outputs of `network` in 32 bit, computed in the configured precision."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            outputs = network(images.contiguous(memory_format=torch.channels_last))
        numbers = [output.float() for output in outputs]
        return type(outputs)(*numbers) if hasattr(outputs, "_fields") else tuple(numbers)

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer = torch.optim.AdamW(self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay)

        def factor(step: int) -> float:
            return min((step + 1) / (config.warmup + 1), 1) * SCHEDULES[config.schedule](step, config)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first, so that the random start is forgotten.
        decay = min(self.config.ema, (self.global_step + 1) / (self.global_step + 10))
        for kept, new in zip(self.average.state_dict().values(), self.network.state_dict().values()):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def train(run: Run, images: Images, held_out: Images | None, device: str, minutes: float | None) -> dict[str, float]:
    """Train `run` to its end, to `minutes` or to Ctrl-C, whichever is first; returns the final metrics.

    Stopped early or not, the run's folder holds a checkpoint that continues exactly.
    """
    start, config = run.steps_done(), run.train_config
    # Here, not in the workers: one forked while OpenCV's threads live would wait for their lock for ever.
    cv2.setNumThreads(0)
    module = Trained(run.method, config)
    pairs = HomographyPairs(images, run.method.pairs(), config.seed)
    loader = DataLoader(pairs, config.batch_size, sampler=EndlessSampler(start * config.batch_size),
                        num_workers=config.workers, worker_init_fn=_ignore_interrupt)
    keeper = Keeper(run, minutes)
    callbacks: list[Callback] = [Progress(config.steps, run.folder), keeper]
    if held_out is not None:
        callbacks.append(Pictures(run.name, [held_out[index] for index in range(min(PICTURES, len(held_out)))]))
    trainer = lightning.Trainer(
        accelerator=device, devices=1, max_steps=config.steps, max_epochs=-1, gradient_clip_val=config.clip or None,
        logger=TensorBoardLogger(run.folder, name="", version=""), log_every_n_steps=config.log_every,
        callbacks=callbacks, plugins=[AtomicCheckpoints()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    with _stop_on_interrupt(trainer):
        trainer.fit(module, loader, ckpt_path=str(run.checkpoint) if start else None, weights_only=True)
    metrics = {"steps": float(trainer.global_step), "minutes": keeper.minutes()}
    if held_out is not None:
        metrics |= evaluate_losses(module, HomographyPairs(held_out, run.method.pairs(), config.seed))
    run.write_metrics(metrics)
    return metrics


def evaluate_losses(module: Trained, pairs: HomographyPairs) -> dict[str, float]:
    """Mean of the method's losses of the exported network over the first pairs."""
    network = module.exported.eval()
    totals: dict[str, list[float]] = {}
    torch.manual_seed(module.config.seed)
    loader = DataLoader(pairs, module.config.batch_size, sampler=range(module.config.held_out_pairs))
    with torch.no_grad():
        for batch in loader:
            batch = PairBatch(*(part.to(module.device) for part in batch))
            for name, value in module.method.losses(lambda images: module.run(network, images), batch).items():
                totals.setdefault(f"held_out/{name}", []).append(value.item())
    return {name: float(np.mean(values)) for name, values in totals.items()}


class Keeper(Callback):
    """Saves the run every so often and at its end, and ends it when its minutes are over."""

    def __init__(self, run: Run, minutes: float | None) -> None:
        self.run, self.limit, self.earlier, self.start = run, minutes, 0.0, time.monotonic()

    def minutes(self) -> float:
        """Minutes spent training, those before a resume included."""
        return self.earlier + (time.monotonic() - self.start) / 60

    def state_dict(self) -> dict[str, float]:
        return {"minutes": self.minutes()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.earlier = state_dict["minutes"]

    def on_train_start(self, *_: Any) -> None:
        self.start = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step % self.run.train_config.save_every == 0:
            trainer.save_checkpoint(self.run.checkpoint)
        if self.limit is not None and (time.monotonic() - self.start) / 60 > self.limit:
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.run.checkpoint)

    def on_save_checkpoint(self, trainer: lightning.Trainer, _: lightning.LightningModule, checkpoint: dict) -> None:
        checkpoint["kp_training"] = self.run.description()


class Progress(Callback):
    """A bar with the losses and the time left on a terminal; a line at each log step elsewhere."""

    def __init__(self, steps: int, folder: Path) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(folder.name, total=steps, losses="")

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.bar.start()
        self.bar.update(self.task, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.bar.update(self.task, completed=trainer.global_step)
        if trainer.global_step % trainer.log_every_n_steps:
            return
        values = trainer.callback_metrics
        losses = "  ".join(f"{name.removeprefix('train/')} {value:.3f}" for name, value in values.items()
                           if name.startswith("train/"))
        self.bar.update(self.task, losses=losses)
        if not self.console.is_terminal:
            print(f"{time.strftime('%H:%M:%S')} step {trainer.global_step}  {losses}", flush=True)

    def on_train_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()


@contextmanager
def _stop_on_interrupt(trainer: lightning.Trainer) -> Iterator[None]:
    """The first Ctrl-C ends training after the step in hand, so that what is saved is whole; a second one kills."""

    def stop(*_: Any) -> None:
        print("\nstopping after this step; --resume continues the run (Ctrl-C again to stop at once)", flush=True)
        trainer.should_stop = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ignore_interrupt(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
