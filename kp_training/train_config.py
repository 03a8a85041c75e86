"""Settings of the training loop, its learning-rate schedules and optimizers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from kp_frontend.errors import InputError
from kp_training.settings import check_least, check_names

PLAIN = {"schedule": "constant", "weight_decay": 0.0, "ema": 0.0, "warmup": 0, "clip": 0.0}
"""The loop of the papers, which have none of these; where the rate falls, they say how."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop; a stage's own defaults come before these, the command line before both.

    steps: optimizer steps of the stage.  batch_size: of one process.  accumulate: batches an optimizer step.
    learning_rate: with reference_batch, it is for that many samples a step, and is scaled to how many there are
        (batch_size × accumulate × processes).
    optimizer: ``adam`` (AdamW) or ``sgd``.  schedule: ``constant``, ``cosine`` to 1 % at `steps`, or ``drop`` times
        drop_factor at the share drop_at of the steps.  warmup: steps.
    clip: gradient norm, 0 = off.  ema: decay of the averaged weights that are exported, 0 = none.
    precision: ``32``, ``bf16`` or ``16`` (of the network only; losses are always 32 bit).
    augment: where pairs are warped and lit: ``loader`` (CPU), ``device``, or ``auto``: the device where it is a GPU.
    workers: loader processes, −1 = one a core but one, at most 8.  save_every, log_every, validate_every: steps.
    validation_pairs: of images kept from training.  patience: validations without a new best before the stage ends,
        0 = never.
    """

    steps: int = 20000
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    reference_batch: int = 0
    weight_decay: float = 1e-4
    optimizer: str = "adam"
    schedule: str = "cosine"
    drop_at: float = 0.8
    drop_factor: float = 0.5
    warmup: int = 100
    clip: float = 5.0
    ema: float = 0.995
    precision: str = "32"
    augment: str = "auto"
    seed: int = 0
    workers: int = -1
    save_every: int = 500
    log_every: int = 50
    validate_every: int = 1000
    validation_pairs: int = 24
    patience: int = 0

    def __post_init__(self) -> None:
        check_names(self, {"schedule": SCHEDULES, "optimizer": OPTIMIZERS, "precision": PRECISIONS, "augment": AUGMENT})
        check_least(self, {
            "steps": 1, "batch_size": 1, "accumulate": 1, "reference_batch": 0, "warmup": 0, "seed": 0, "workers": -1,
            "save_every": 1, "log_every": 1, "validate_every": 1, "validation_pairs": 1, "patience": 0,
            "learning_rate": 0, "weight_decay": 0, "clip": 0, "drop_at": 0, "drop_factor": 0,
        })
        if not 0 <= self.ema < 1:
            raise InputError(f"ema={self.ema:g}: expected 0 (none) or a decay below 1, as in 0.995")

    @property
    def loader_workers(self) -> int:
        """Loader processes, with auto resolved."""
        return min(8, max(1, len(os.sched_getaffinity(0)) - 1)) if self.workers < 0 else self.workers

    def scaled_learning_rate(self, processes: int) -> float:
        """The rate for as many samples a step as `processes` take together."""
        samples = self.batch_size * self.accumulate * processes
        return self.learning_rate * (samples / self.reference_batch if self.reference_batch else 1)

    def rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied by at `step`."""
        return min((step + 1) / (self.warmup + 1), 1) * SCHEDULES[self.schedule](step, self)


def _cosine(step: int, config: TrainConfig) -> float:
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1)))


def _drop(step: int, config: TrainConfig) -> float:
    return 1.0 if step < config.drop_at * config.steps else config.drop_factor


def _adam(weights: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, rate, weight_decay=decay)


def _sgd(weights: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, rate, weight_decay=decay)


SCHEDULES: dict[str, Callable[[int, TrainConfig], float]] = {
    "constant": lambda step, config: 1.0, "cosine": _cosine, "drop": _drop,
}
OPTIMIZERS = {"adam": _adam, "sgd": _sgd}
PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
AUGMENT = ("auto", "loader", "device")
