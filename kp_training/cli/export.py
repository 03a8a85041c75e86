"""``export``: a trained run as an ONNX file with metadata, checked against PyTorch before it is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_args(argv)
    if options.top_k is not None:
        raise InputError("--top-k asks for the sparse profile, which this version does not export; leave it out: "
                         "the dense profile takes top_k at run time")
    if options.output.suffix != ".onnx":
        raise InputError(f"--output {options.output}: expected a file name that ends in .onnx")
    from kp_training.export.onnx import deployed_module, export_onnx, metadata_of
    from kp_training.runs import git_revision, open_run

    run, checkpoint = open_run(options.run)
    images = check_images(options.check_image)
    folder_metrics = run.folder / "metrics.json"
    metrics = json.loads(folder_metrics.read_text()) if folder_metrics.is_file() else {}
    metadata = metadata_of(
        run.name, run.method, licence=options.licence, metrics=metrics | {"steps": float(checkpoint["global_step"])},
        data=options.data or ", ".join(_without_folders(spec) for spec in run.data), revision=git_revision(),
    )
    outputs = run.method.decoding().outputs
    difference = export_onnx(deployed_module(run.method, checkpoint), outputs, metadata, options.output, images)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB, step {checkpoint['global_step']}, "
          f"differs from PyTorch by {difference:.1e} on {len(images)} images")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("export", description="Write a trained run as ONNX with metadata (dense profile).")
    parser.add_argument("run", type=Path, metavar="RUN_OR_CKPT", help="run folder or checkpoint file")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.onnx")
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
