"""What happens beside training: saving, stopping, and telling how it goes."""

from __future__ import annotations

import abc
import contextlib
import logging
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback

from kp_frontend.errors import InputError
from kp_training.methods.base import Stage
from kp_training.runs import Run

LONGEST_UNSAVED = 300.0
"""Seconds; a stage of few and long steps is saved though `save_every` is far."""
LONGEST_SILENCE = 60.0
"""Seconds between two lines about a stage of long steps."""


class AfterStep(Callback, abc.ABC):
    """Calls `after_step` once an optimizer step, however many batches were accumulated for it."""

    _done = -1

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step != self._done:
            self._done = trainer.global_step
            self.after_step(trainer, module)

    @abc.abstractmethod
    def after_step(self, trainer: lightning.Trainer, module: Any) -> None: ...


class Keeper(AfterStep):
    """Saves the run every so often and at its end, and ends it when its minutes are over, at Ctrl-C or at SIGTERM.

    Only between optimizer steps, so that what is saved is whole; a second Ctrl-C kills.
    """

    def __init__(self, run: Run, minutes: float | None) -> None:
        self.run, self.limit, self.interrupted = run, minutes, False
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._saved = time.monotonic()
        self.began, self.start, self.earlier = time.monotonic(), time.monotonic(), 0.0

    def begin(self, stage: Stage) -> None:
        """Go on to `stage`; its minutes count from here."""
        self.stage, self.start, self.earlier = stage, time.monotonic(), 0.0

    def minutes(self) -> float:
        """Minutes spent on the stage, those before a resume included."""
        return self.earlier + (time.monotonic() - self.start) / 60

    def state_dict(self) -> dict[str, float]:
        return {"minutes": self.minutes()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.earlier = state_dict["minutes"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        super().on_train_start(trainer, module)
        for number in self._handlers:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        print("\nstopping after this step; --resume continues the run (Ctrl-C again to stop at once)", flush=True)
        self.interrupted = True
        self.restore_signals()

    def restore_signals(self) -> None:
        """Signals do again what they did before training."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def teardown(self, *_: Any, **__: Any) -> None:
        self.restore_signals()

    def after_step(self, trainer: lightning.Trainer, _: Any) -> None:
        due = time.monotonic() - self._saved > LONGEST_UNSAVED
        if trainer.global_step % self.run.configs[self.stage.name].save_every == 0 or self._decide(trainer, due):
            trainer.save_checkpoint(self.run.last)
            self._saved = time.monotonic()
        late = self.limit is not None and (time.monotonic() - self.began) / 60 > self.limit
        if self._decide(trainer, late or self.interrupted):
            trainer.should_stop = True

    @staticmethod
    def _decide(trainer: lightning.Trainer, wish: bool) -> bool:
        """Whether any process wishes it."""
        return bool(trainer.strategy.reduce_boolean_decision(wish, all=False))

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.run.last)

    def on_save_checkpoint(self, trainer: lightning.Trainer, _: lightning.LightningModule, checkpoint: dict) -> None:
        checkpoint["kp_training"] = self.run.description() | {"stage": self.stage.name}


class Progress(AfterStep):
    """A bar with the losses and the time left on a terminal; elsewhere lines: at log steps, the last, each minute."""

    def __init__(self, name: str, steps: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.name, self.steps, self.console, self.told = name, steps, Console(), time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=steps, losses="")

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        super().on_train_start(trainer, module)
        if trainer.is_global_zero:
            self.bar.start()
        self.bar.update(self.task, completed=trainer.global_step)

    def after_step(self, trainer: lightning.Trainer, _: Any) -> None:
        self.bar.update(self.task, completed=trainer.global_step)
        step, due = trainer.global_step, time.monotonic() - self.told > LONGEST_SILENCE
        if not trainer.is_global_zero or not (due or step % trainer.log_every_n_steps == 0 or step == self.steps):
            return
        self.told = time.monotonic()
        losses = "  ".join(f"{name.removeprefix(f'{self.name}/')} {value:.3f}"
                           for name, value in trainer.callback_metrics.items()
                           if name.startswith(f"{self.name}/") and not name.endswith("learning_rate"))
        self.bar.update(self.task, losses=losses)
        if not self.console.is_terminal:
            print(f"{time.strftime('%H:%M:%S')} {self.name} step {step}  {losses}", flush=True)

    def on_train_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()


def ignore_interrupt(_: int) -> None:
    """For loader workers: the loop decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """An InputError of a loader worker says what it said there; PyTorch makes the worker's whole trace its message."""
    try:
        yield
    except InputError as error:
        trace, _, said = str(error).rpartition(f"\n{InputError.__module__}.{InputError.__qualname__}: ")
        if not trace:
            raise
        raise InputError(said.rstrip()) from error


def quiet_lightning() -> None:
    """Lightning's advice on loaders and its banner are not for our users.

    After importing it, since the import sets the levels.
    """
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
