"""A run's folder: resolved configuration, one checkpoint that is always whole, metrics."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from kp_frontend.errors import InputError, unknown_name
from kp_training.methods import METHODS
from kp_training.methods.base import Method, read_config

if TYPE_CHECKING:
    from kp_training.training import TrainConfig

CHECKPOINT = "last.ckpt"


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the target and renames, so that a killed run leaves the old checkpoint or the new, never half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        beside = Path(f"{path}.writing")
        super().save_checkpoint(checkpoint, beside, storage_options)
        os.replace(beside, path)


class Run:
    """One training run and where it lives.

    folder: holds ``config.yaml``, ``last.ckpt``, TensorBoard events and, at the end, ``metrics.json``.
    """

    def __init__(self, folder: Path, name: str, method: Method, train_config: TrainConfig, data: list[str]) -> None:
        self.folder, self.name, self.method, self.train_config, self.data = folder, name, method, train_config, data

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def description(self) -> dict[str, Any]:
        """All that is needed to build this run again, as plain values."""
        return {"method": self.name, "settings": asdict(self.method.config), "training": asdict(self.train_config),
                "data": list(self.data), "revision": git_revision()}

    def steps_done(self) -> int:
        """Optimizer steps of the run's checkpoint, 0 without one."""
        return int(load_checkpoint(self.checkpoint)["global_step"]) if self.checkpoint.exists() else 0

    def write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.description(), sort_keys=False))

    def write_metrics(self, metrics: dict[str, float]) -> None:
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def build_run(folder: Path, name: str, values: dict[str, Any], data: list[str]) -> Run:
    """A Run from a method's name and flat settings, the method's and the loop's mixed.

    Raises InputError for an unknown method or setting, or a value that does not fit.
    """
    from kp_training.training import TrainConfig

    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    kind = METHODS[name]
    loop_keys, own_keys = TrainConfig.__dataclass_fields__, kind.Config.__dataclass_fields__
    for key in values:
        if key not in loop_keys and key not in own_keys:
            raise unknown_name("setting", key, [*own_keys, *loop_keys])
    method = kind(read_config(kind.Config, {key: value for key, value in values.items() if key in own_keys}, name))
    loop_values = method.training_defaults() | {key: value for key, value in values.items() if key in loop_keys}
    return Run(folder, name, method, read_config(TrainConfig, loop_values, "training"), data)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint at `path` or in that run folder, on the CPU; only plain values and tensors are unpickled.

    Raises InputError where there is none or where it is not one of ours.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no checkpoint at {file}; give a run folder with {CHECKPOINT}, or a checkpoint file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} cannot be read as a checkpoint ({reason}); train again or give another") from error
    if not isinstance(checkpoint, dict) or "kp_training" not in checkpoint:
        raise InputError(f"{file} was not written by `kp_training train`; give a checkpoint of a run of ours")
    return checkpoint


def open_run(
    path: Path, overrides: dict[str, Any] | None = None, name: str | None = None
) -> tuple[Run, dict[str, Any]]:
    """The run of a folder or checkpoint file, and its checkpoint; `overrides` replace settings that were stored.

    Raises InputError where it is of another method than `name`.
    """
    checkpoint = load_checkpoint(path)
    stored = checkpoint["kp_training"]
    if name is not None and name != stored["method"]:
        raise InputError(f"{path} was trained by method {stored['method']!r}, not {name!r}; "
                         "resume it without --method, or start a new run")
    values = stored["settings"] | stored["training"] | (overrides or {})
    folder = path if path.is_dir() else path.parent
    return build_run(folder, stored["method"], values, list(stored["data"])), checkpoint


@functools.cache
def git_revision() -> str:
    """Commit of the source tree, with ``-dirty`` where files differ from it; empty outside a checkout."""
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
