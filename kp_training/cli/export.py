"""``export``: a trained run as an ONNX file with metadata, checked against PyTorch before it is written.

Or as a checkpoint of the weights alone, for others to start from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kp_frontend.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_intermixed_args(argv)
    if options.top_k is not None:
        raise InputError("--top-k asks for the sparse profile, which this version does not export; leave it out: "
                         "the dense profile takes top_k at run time")
    if options.output.suffix not in (".onnx", ".ckpt"):
        raise InputError(f"--output {options.output}: expected a file name that ends in .onnx, or in .ckpt for weights "
                         "to start another run from")
    if options.settings and not options.method:
        raise InputError(f"{options.settings[0]}: settings go with --method; a run has its own")
    if options.output.suffix == ".ckpt":
        return _write_weights(options)
    from kp_training.deployment import metadata_of
    from kp_training.export.onnx import export_onnx
    from kp_training.runs import git_revision

    source = _published(options) if options.method else _trained(options.run)
    metadata = metadata_of(
        source.name, source.method, source.network, licence=options.licence, revision=git_revision(),
        metrics=source.metrics, data=options.data or source.data,
    )
    images = check_images(options.check_image)
    decoding, module = source.method.decoding(), source.method.stages()[-1].deployed(source.network).eval()
    difference = export_onnx(module, decoding.outputs, metadata, options.output, images, decoding.points)
    print(f"{options.output}: {source.name} {source.method.variant}, {options.output.stat().st_size / 1e6:.2f} MB, "
          f"differs from PyTorch by {difference:.1e} on {len(images)} images")
    return 0


@dataclass(frozen=True)
class Source:
    """What is exported: a method by its name, its trained network, and what to say of the training."""

    name: str
    method: Any
    network: Any
    metrics: dict[str, float]
    data: str


def _trained(path: Path) -> Source:
    """The last stage of a run."""
    from kp_training.runs import load_checkpoint, load_network, open_run

    run, checkpoint = open_run(path), load_checkpoint(path)
    stage, network = load_network(run.method, checkpoint)
    if stage.name != run.stages[-1].name:
        raise InputError(f"{path} is of stage {stage.name!r}, before the last ({run.stages[-1].name!r}); "
                         f"finish the run first: train --resume {run.folder}")
    metrics = run.metrics().get(stage.name, {}) | {"steps": float(checkpoint["global_step"])}
    return Source(run.name, run.method, network, metrics, ", ".join(_without_folders(spec) for spec in run.data))


def _write_weights(options: argparse.Namespace) -> int:
    """The averaged weights of a run, without what only resuming needs, and without folders of this machine."""
    from kp_training.runs import load_checkpoint, write_checkpoint
    from kp_training.weights import trained_weights

    if options.method:
        raise InputError("--output FILE.ckpt writes the weights of a run; leave --method out")
    checkpoint = load_checkpoint(options.run)
    about = checkpoint["kp_training"]
    about["data"] = [_without_folders(spec) for spec in about["data"]]
    about["init"] = about["init"] and Path(about["init"]).name
    weights = {f"network.{name}": values for name, values in trained_weights(checkpoint).items()}
    write_checkpoint({"kp_training": about, "global_step": checkpoint["global_step"], "state_dict": weights},
                     options.output)
    print(f"{options.output}: {about['method']}, stage {about['stage']}, {options.output.stat().st_size / 1e6:.2f} MB; "
          f"start from it with: python -m kp_training train --init {options.output} …")
    return 0


def _published(options: argparse.Namespace) -> Source:
    """A weight file as its authors published it, in the network of --method."""
    from kp_training.cli.train import parse_settings
    from kp_training.runs import build_run
    from kp_training.weights import load_initial

    run = build_run(Path(), options.method, [], parse_settings(options.settings))
    network = run.stages[-1].network()
    load_initial(network, options.run)
    return Source(options.method, run.method, network, {}, f"published weights {options.run.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("export", description="Write a trained run as ONNX with metadata (dense profile).")
    parser.add_argument("run", type=Path, metavar="RUN_OR_CKPT",
                        help="run folder or checkpoint file; with --method: a weight file that its authors published")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of --method, as for train")
    parser.add_argument("--method", help="method whose published weight file is given")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE",
                        help="FILE.onnx for the runtime, or FILE.ckpt: the weights alone, for train --init")
    parser.add_argument("--check-image", type=Path, metavar="DIR", help="photographs to check against PyTorch on")
    parser.add_argument("--licence", default="", help="licence of the weights, for the metadata")
    parser.add_argument("--data", default="", help="what it was trained on, for the metadata; default: the data specs")
    parser.add_argument("--top-k", type=int, help=argparse.SUPPRESS)
    return parser


def check_images(folder: Path | None, count: int = 4) -> list[np.ndarray]:
    """Images of different sizes to compare on, H×W×3 BGR uint8: the first of a folder, or scikit-image's."""
    if folder is not None:
        from kp_training.data.photos import PhotoFolder

        photos = PhotoFolder(folder)
        chosen = [photos[index] for index in range(min(count, len(photos)))]
    else:
        from skimage import data

        chosen = [cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR), cv2.cvtColor(data.camera(), cv2.COLOR_GRAY2BGR)]
    return [*chosen, cv2.resize(chosen[0], (320, 256))]


def _without_folders(spec: str) -> str:
    """A data spec without the folders of the machine that it was used on."""
    kind, _, argument = spec.partition(":")
    return f"{kind}:{Path(argument).name}" if argument else kind
