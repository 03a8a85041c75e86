"""``train``: a method on photographs, to a run folder that can be watched, stopped, resumed and exported."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kp_frontend.errors import InputError

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_intermixed_args(argv)
    overrides = _settings(options.settings)
    if options.steps is not None:
        overrides["steps"] = options.steps
    if options.minutes is not None and options.minutes <= 0:
        raise InputError(f"--minutes {options.minutes:g}: expected more than 0")
    from kp_training.data import open_images
    from kp_training.runs import open_run
    from kp_training.training import train

    _quiet()
    _check_device(options.device)
    if options.resume is not None:
        _refuse_with_resume(options)
        run, _ = open_run(options.resume, overrides, options.method)
    else:
        run = _new_run(options, overrides)
    images = open_images(run.data)
    held_out = _held_out(run.data)
    run.write_config()
    steps = run.train_config.steps
    print(f"{run.name} {run.method.variant}: {len(images)} images, {steps} steps → {run.folder}", flush=True)
    metrics = train(run, images, held_out, options.device, options.minutes)
    done, minutes = int(metrics["steps"]), metrics["minutes"]
    print(f"{done} steps in {minutes:.1f} minutes; metrics in {run.folder / 'metrics.json'}")
    if done < steps:
        print(f"stopped early; continue with: python -m kp_training train --resume {run.folder}")
    print(f"export with: python -m kp_training export {run.folder} --output models/NAME.onnx")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("train", description="Train a method; every setting has the paper's default.")
    parser.add_argument("--method", help="method to train (kp2d)")
    parser.add_argument("--data", action="append", metavar="SPEC", default=[],
                        help="photos:FOLDER or procedural[:COUNT]; may be repeated; default: procedural")
    parser.add_argument("--config", type=Path, help="YAML file of settings, below those of the command line")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the run; default: runs/METHOD-DATE")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue this run exactly where it stopped")
    parser.add_argument("--steps", type=int, help="optimizer steps in all; the schedule is spread over them")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; --resume continues")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the method or of the loop")
    return parser


def _new_run(options: argparse.Namespace, overrides: dict[str, Any]) -> Any:
    from kp_training.methods import METHODS
    from kp_training.runs import build_run

    values = _read_config(options.config) if options.config else {}
    name = options.method or values.pop("method", None)
    values.pop("method", None)
    if name is None:
        raise InputError(f"which method? give --method, one of: {', '.join(METHODS)}")
    data = options.data or values.pop("data", None) or ["procedural"]
    values.pop("data", None)
    folder = options.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / "last.ckpt").exists():
        raise InputError(f"{folder} holds a run already; continue it with --resume {folder}, or give another --run")
    return build_run(folder, name, values | overrides, list(data))


def _refuse_with_resume(options: argparse.Namespace) -> None:
    for name in ("data", "config", "run"):
        if getattr(options, name):
            raise InputError(f"--{name} does not go with --resume: the run goes on as it was begun")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no config file {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines of `setting: value`, got {type(values).__name__}")
    return values


def _check_device(device: str) -> None:
    import torch

    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device in available and not available[device]():
        raise InputError(f"--device {device}: PyTorch {torch.__version__} sees none; use --device auto or cpu")


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict of text."""
    pairs = [word.partition("=") for word in words]
    for key, sign, _ in pairs:
        if not sign or not key:
            raise InputError(f"{key!r}: expected key=value, as in learning_rate=0.001")
    return {key: value for key, _, value in pairs}


def _held_out(specs: Sequence[str]) -> Any:
    from kp_training.data import open_images

    try:
        return open_images(specs, held_out=True)
    except InputError as error:
        log.warning("no losses on images kept from training: %s", error)
        return None


def _quiet() -> None:
    """Lightning's advice on loaders and its banner are not for our users.

    After importing it, since the import sets the levels.
    """
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
