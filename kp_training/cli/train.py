"""``train``: a method on photographs or scenes, to a run folder that can be watched, stopped, resumed and exported."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from kp_frontend.errors import InputError
from kp_training.methods import METHODS

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m kp_training train --method kp2d                                on built-in images, nothing to fetch
  python -m kp_training train --method superpoint --data photos:DIR network=compact joint.steps=20000
  python -m kp_training train --method pos_feat --data posed:DIR           on your own recording, images and poses
  python -m kp_training train --method silk --settings                     what can be set, with defaults
  torchrun --nproc-per-node 4 -m -- kp_training train --method kp2d --data photos:DIR --run DIR    four GPUs"""


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_intermixed_args(argv)
    if options.list_settings:
        return _list_settings(options.method)
    overrides = parse_settings(options.settings)
    if options.steps is not None:
        overrides["steps"] = options.steps
    if options.minutes is not None and options.minutes <= 0:
        raise InputError(f"--minutes {options.minutes:g}: expected more than 0")
    from kp_training.callbacks import quiet_lightning
    from kp_training.data import open_images
    from kp_training.runs import open_run
    from kp_training.training import check_device, train

    quiet_lightning()
    check_device(options.device)
    first = os.environ.get("RANK", "0") == "0"
    if options.resume is not None:
        _refuse_with_resume(options)
        run = open_run(options.resume, overrides, options.method)
    else:
        run = _new_run(options, overrides)
    images = open_images(run.data)
    held_out = _held_out(run.data)
    if first:
        steps = ", ".join(f"{name} {config.steps}" for name, config in run.configs.items())
        print(f"{run.name} {run.method.variant} on {', '.join(run.data)}; steps: {steps} → {run.folder}", flush=True)
    try:
        over = train(run, images, held_out, options.device, options.minutes)
    except KeyboardInterrupt:
        print(f"\nstopped; continue with: python -m kp_training train --resume {run.folder}")
        return 130
    if first:
        _report(run, over)
    return 0


def _report(run: Any, over: bool) -> None:
    for stage, metrics in run.metrics().items():
        scores = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()
                           if name not in ("steps", "minutes") and not name.startswith("best/"))
        print(f"{stage}: {metrics['steps']:.0f} steps in {metrics['minutes']:.1f} minutes  {scores}")
    if over:
        print(f"export with: python -m kp_training export {run.folder} --output models/NAME.onnx")
    else:
        print(f"stopped early; continue with: python -m kp_training train --resume {run.folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "train", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description="Train all stages of a method; every setting has the paper's default.")
    parser.add_argument("--method", help=f"method to train: {', '.join(METHODS)}")
    parser.add_argument("--data", action="append", metavar="SPEC", default=[],
                        help="photos:FOLDER or procedural[:COUNT] for images, posed:PATH (a scene folder of any "
                             "layout, a folder of such, or a bag) or rooms[:COUNT] for scenes; may be repeated; "
                             "default: procedural, and rooms where a method learns from scenes")
    parser.add_argument("--config", type=Path, help="YAML file of settings, below those of the command line")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of the run; default: runs/METHOD-DATE")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue this run exactly where it stopped")
    parser.add_argument("--init", type=Path, metavar="FILE",
                        help="weights to start from: a checkpoint with the same network, or a published weight file")
    parser.add_argument("--steps", type=int, help="optimizer steps of each stage; schedules are spread over them")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; --resume continues")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--settings", dest="list_settings", action="store_true",
                        help="list the settings of --method and of the loop with their defaults, and end")
    parser.add_argument("settings", nargs="*", metavar="key=value",
                        help="settings of the method or of the loop; of one stage of it as STAGE.key=value")
    return parser


def _which_method() -> InputError:
    return InputError(f"which method? give --method, one of: {', '.join(METHODS)}")


def _new_run(options: argparse.Namespace, overrides: dict[str, Any]) -> Any:
    from kp_training.runs import CONFIG, build_run

    values = _read_config(options.config) if options.config else {}
    name = options.method or values.pop("method", None)
    values.pop("method", None)
    given = values.pop("data", None)
    if name is None:
        raise _which_method()
    data = options.data or _data_specs(options.config, given) or ["procedural"]
    if options.run is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes need one folder: give --run DIR")
    folder = options.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / CONFIG).exists() and os.environ.get("RANK", "0") == "0":
        raise InputError(f"{folder} holds a run already; continue it with --resume {folder}, or give another --run")
    run = build_run(folder, name, data, values, overrides)
    run.initial = options.init.resolve() if options.init else None
    return run


def _refuse_with_resume(options: argparse.Namespace) -> None:
    if not options.resume.is_dir():
        raise InputError(f"--resume {options.resume}: expected the folder of a run; a new run starts from the weights "
                         f"of a file with --init {options.resume}")
    for name in ("data", "config", "run", "init"):
        if getattr(options, name):
            raise InputError(f"--{name} does not go with --resume: the run goes on as it was begun")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no config file {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML in UTF-8 ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines of `setting: value`, got {type(values).__name__}")
    return values


def _data_specs(config: Path, given: Any) -> list[str]:
    """`data` of the file `config`: a spec, a list of them, or None."""
    specs = [given] if isinstance(given, str) else given or []
    if not isinstance(specs, list) or not all(isinstance(spec, str) for spec in specs):
        raise InputError(f"{config}: data: {given}: expected a spec, as photos:DIR, or a list of such")
    return specs


def _list_settings(name: str | None) -> int:
    """What can be set for a method, its defaults, and what its stages change of the loop's."""
    import inspect

    from kp_training.methods import find_method
    from kp_training.train_config import TrainConfig

    if name is None:
        raise _which_method()
    method = find_method(name)
    for title, kind in ((name, method.Config), ("the loop", TrainConfig)):
        print(f"Settings of {title}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n")
        print("\n".join(f"  {entry.name}={entry.default}" for entry in fields(kind)) + "\n")
    print("Stages, and what they set of the loop")
    for stage in method(method.Config()).stages():
        print(f"  {stage.name}: {' '.join(f'{key}={value}' for key, value in stage.training.items())}")
    return 0


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict of text."""
    pairs = [word.partition("=") for word in words]
    for key, sign, _ in pairs:
        if not sign or not key:
            raise InputError(f"{key!r}: expected key=value, as in learning_rate=0.001")
    return {key: value for key, _, value in pairs}


def _held_out(specs: Sequence[str]) -> Any:
    """Images kept from training, to validate on; procedural ones where a folder is too small to keep any."""
    from kp_training.data import open_images

    try:
        return open_images(specs, held_out=True)
    except InputError as error:
        log.warning("validation is on procedural images: %s", error)
        return open_images([], held_out=True)
