"""A trained run as an ONNX file with metadata, written only after it agreed with PyTorch on images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.extractors.learned import network_input
from kp_frontend.model_file import KEY, ModelMetadata

OPSET = 18  # opset-20 GridSample gives wrong values on TensorRT 10.13
TOLERANCE = 1e-3
"""Largest difference from PyTorch, relative to the largest value of that output."""


def export_onnx(
    module: nn.Module, outputs: Sequence[str], metadata: ModelMetadata, path: Path, images: Sequence[np.ndarray],
    points: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
) -> float:
    """Write `module` to `path` and return its largest relative difference from PyTorch over `images`.

    images: H×W×3 BGR uint8, best of several sizes, so that a size frozen into the graph is found out.
    points: what the module takes beside an image, see `Decoding.points`; B×N×… each, N is left dynamic.
    Raises InputError, and leaves an existing file alone, where the difference is above TOLERANCE.
    """
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        _trace(module, outputs, metadata, beside, points(images[0]) if points else {})
        model = onnx.load(str(beside))
        onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(beside))
        difference = max(
            largest_difference(module, beside, outputs, network_input(image, metadata), points(image) if points else {})
            for image in images
        )
        if not difference <= TOLERANCE:
            raise InputError(f"{path} not written: ONNX differs from PyTorch by {difference:.2g} of the largest value "
                             f"(at most {TOLERANCE:g} is allowed)")
    return difference


def _trace(
    module: nn.Module, outputs: Sequence[str], metadata: ModelMetadata, path: Path, points: Mapping[str, np.ndarray]
) -> None:
    """Write the graph of `module`; `points`: an example of what it takes beside the image."""
    # A size that is no image's, so that nothing can be right by accident.
    example = torch.rand(1, metadata.channels, 4 * metadata.size_multiple, 6 * metadata.size_multiple)
    names = ["image", *points]
    maps = ("image",) if points else ("image", *outputs)
    axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in maps}
    axes |= {name: {1: "points"} for name in (*points, *(outputs if points else ()))}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example, *(torch.from_numpy(value) for value in points.values())), str(path),
                          input_names=names, output_names=list(outputs), dynamic_axes=axes, opset_version=OPSET,
                          dynamo=False)


def largest_difference(
    module: nn.Module, path: Path, outputs: Sequence[str], blob: np.ndarray,
    points: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> float:
    """max |ONNX − PyTorch| / max |PyTorch| over the outputs for one input; inf for another shape or no number.

    blob: 1×C×H×W float32.  points: what the module takes beside it, in the order of its arguments.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    computed = session.run(list(outputs), {"image": blob, **points})
    with torch.no_grad():
        results = module(*(torch.from_numpy(value) for value in (blob, *points.values())))
    expected: Sequence[Tensor] = (results,) if isinstance(results, Tensor) else results
    worst = 0.0
    for ours, theirs in zip(computed, expected):
        reference = theirs.numpy()
        if ours.shape != reference.shape or not np.isfinite(ours).all():
            return float("inf")
        worst = max(worst, float(np.abs(ours - reference).max(initial=0) / np.abs(reference).max(initial=1e-12)))
    return worst
