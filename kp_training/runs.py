"""A run's folder: resolved configuration, checkpoints that are always whole, metrics."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.resources import make_folders
from kp_frontend.settings import read_settings
from kp_training.methods import find_method
from kp_training.methods.base import Method, Stage
from kp_training.train_config import TrainConfig
from kp_training.weights import load_trained, read_weights

CONFIG, LAST, BEST, METRICS = "config.yaml", "last.ckpt", "best.ckpt", "metrics.json"


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the target and renames, so that a killed run leaves the old checkpoint or the new, never half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises InputError where the disk takes no more; what was there stays."""
        beside = Path(f"{path}.writing")
        try:
            super().save_checkpoint(checkpoint, beside, storage_options)
        except (OSError, RuntimeError) as error:  # PyTorch's zip writer makes a RuntimeError of a full disk
            beside.unlink(missing_ok=True)
            raise InputError(f"{path} could not be written ({str(error).splitlines()[0]}); the checkpoint before it is "
                             f"whole: free some space, then train --resume {Path(path).parent}") from error
        os.replace(beside, path)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """`checkpoint` at `path`, whole or not at all; InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            torch.save(checkpoint, beside)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} could not be written ({str(error).splitlines()[0]}); give another place") from error


class Run:
    """One training run and where it lives.

    folder: holds ``config.yaml``, ``last.ckpt`` (of the stage in hand), ``best.ckpt``, ``STAGE.ckpt`` of each stage
    that is over but the last, TensorBoard events and ``metrics.json``.
    configs: of the loop, by stage name.  initial: file of the weights that the first stage starts from, if any.
    """

    initial: Path | None = None

    def __init__(
        self, folder: Path, name: str, method: Method, configs: dict[str, TrainConfig], data: list[str]
    ) -> None:
        self.folder, self.name, self.method, self.configs, self.data = folder, name, method, configs, data
        self.stages = method.stages()

    @property
    def last(self) -> Path:
        return self.folder / LAST

    def description(self) -> dict[str, Any]:
        """All that is needed to build this run again, as plain values."""
        training = {name: asdict(config) for name, config in self.configs.items()}
        return {"method": self.name, "settings": asdict(self.method.config), "training": training,
                "data": list(self.data), "init": str(self.initial) if self.initial else None,
                "revision": git_revision()}

    def write_config(self) -> None:
        """Raises InputError where the folder cannot be made."""
        make_folders(self.folder)
        with written_whole(self.folder / CONFIG) as beside:
            beside.write_text(yaml.safe_dump(self.description(), sort_keys=False))

    def write_metrics(self, stage: str, metrics: dict[str, float]) -> None:
        """Keep the metrics of `stage` beside those of the others."""
        with written_whole(self.folder / METRICS) as beside:
            beside.write_text(json.dumps(self.metrics() | {stage: metrics}, indent=2) + "\n")

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by stage; empty before the first stage ended."""
        file = self.folder / METRICS
        return json.loads(file.read_text()) if file.is_file() else {}

    def kept(self, stage: str) -> Path:
        """Where the checkpoint of the stage of that name is once it is over and another follows."""
        return self.folder / f"{stage}.ckpt"

    def in_hand(self, stage: Stage) -> bool:
        """Whether the last checkpoint is of `stage`."""
        return self.last.is_file() and load_checkpoint(self.last)["kp_training"]["stage"] == stage.name

    def finish(self, stage: Stage) -> None:
        """Put the last checkpoint away as that of `stage`."""
        os.replace(self.last, self.kept(stage.name))
        (self.folder / BEST).unlink(missing_ok=True)


def build_run(folder: Path, name: str, data: list[str], *layers: Mapping[str, Any]) -> Run:
    """A Run from a method's name and flat settings, the method's and the loop's mixed; later layers win.

    A loop setting holds for every stage, or for one as ``STAGE.setting``.
    Raises InputError for an unknown method or setting, or a value that does not fit.
    """
    kind = find_method(name)
    own_keys, loop_keys = kind.Config.__dataclass_fields__, TrainConfig.__dataclass_fields__
    values = {key: value for layer in layers for key, value in layer.items()}
    method = kind(read_settings(name, kind.Config, {key: value for key, value in values.items() if key in own_keys}))
    stages = method.stages()
    loop_names = [*loop_keys, *(f"{stage.name}.{key}" for stage in stages for key in loop_keys)]
    for key in values:
        if key not in own_keys and key not in loop_names:
            raise unknown_name("setting", key, [*own_keys, *loop_keys, *(f"{stage.name}.…" for stage in stages)])
    configs = {stage.name: read_settings(stage.name, TrainConfig, _loop_values(stage, layers, loop_keys))
               for stage in stages}
    return Run(folder, name, method, configs, data)


def _loop_values(stage: Stage, layers: tuple[Mapping[str, Any], ...], loop_keys: Any) -> dict[str, Any]:
    values = dict(stage.training)
    for layer in layers:
        values |= {key: value for key, value in layer.items() if key in loop_keys}
        values |= {key.removeprefix(f"{stage.name}."): value for key, value in layer.items()
                   if key.startswith(f"{stage.name}.")}
    return values


def open_run(path: Path, overrides: Mapping[str, Any] | None = None, name: str | None = None) -> Run:
    """The run of a folder or of a checkpoint file; `overrides` replace settings that were stored.

    Raises InputError where there is none, or where it is of another method than `name`.
    """
    stored = _read_description(path) if path.is_dir() else load_checkpoint(path)["kp_training"]
    if name is not None and name != stored["method"]:
        raise InputError(f"{path} was trained by method {stored['method']!r}, not {name!r}; "
                         "resume it without --method, or start a new run")
    loop = {f"{stage}.{key}": value for stage, values in stored["training"].items() for key, value in values.items()}
    folder = path if path.is_dir() else path.parent
    run = build_run(folder, stored["method"], list(stored["data"]), stored["settings"] | loop, overrides or {})
    run.initial = Path(stored["init"]) if stored["init"] else None
    return run


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{folder} holds no run (no {CONFIG}); give the folder that `train` named, or a checkpoint")
    try:
        stored = yaml.safe_load(file.read_text())
        if {"method", "settings", "training", "data", "init"} <= set(stored):
            return stored
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):
        pass
    raise InputError(f"{file} is not what `kp_training train` wrote; start a new run")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, or a run folder's last, on the CPU; only plain values and tensors are unpickled.

    Raises InputError where there is none or where it is not one of ours.
    """
    file = path / LAST if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no checkpoint at {file}; give a run folder with {LAST}, or a checkpoint file")
    checkpoint = read_weights(file)
    if not isinstance(checkpoint, dict) or "kp_training" not in checkpoint:
        raise InputError(f"{file} was not written by `kp_training train`; give a checkpoint of a run of ours")
    return checkpoint


def load_network(method: Method, checkpoint: Mapping[str, Any]) -> tuple[Stage, nn.Module]:
    """The stage that a checkpoint is of, and its network: the averaged weights, or the last where none are kept.

    Raises InputError where the weights do not fit the network.
    """
    name = checkpoint["kp_training"]["stage"]
    stage = next((stage for stage in method.stages() if stage.name == name), None)
    if stage is None:
        raise InputError(f"the checkpoint is of stage {name!r}, which {method.variant} has not")
    network = stage.network()
    load_trained(network, checkpoint, method.variant)
    return stage, network


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
