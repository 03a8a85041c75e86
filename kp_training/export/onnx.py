"""A trained run as an ONNX file with metadata, written only after it agreed with PyTorch on images."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError
from kp_frontend.extractors.learned import network_input
from kp_frontend.model_file import KEY, ModelMetadata
from kp_training.methods.base import Method

OPSET = 18  # opset-20 GridSample gives wrong values on TensorRT 10.13
TOLERANCE = 1e-3
"""Largest difference from PyTorch, relative to the largest value of that output."""


def deployed_module(method: Method, checkpoint: dict) -> nn.Module:
    """What is exported: the averaged weights of a checkpoint, or its last ones where no average was kept.

    Raises InputError where the weights do not fit the network.
    """
    state = checkpoint["state_dict"]
    prefix = "average." if any(key.startswith("average.") for key in state) else "network."
    network = method.network()
    try:
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        network.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"the checkpoint does not fit the network of {method.variant} ({str(error).splitlines()[0]}); "
                         "it was trained by other code") from error
    return method.deployed(network).eval()


def metadata_of(method_name: str, method: Method, **about: object) -> ModelMetadata:
    """Metadata of a method's dense profile; `about`: data, licence, metrics, revision."""
    decoding, network = method.decoding(), method.network()
    return ModelMetadata(
        method=method_name, variant=method.variant, decoder=decoding.decoder, decoder_parameters=decoding.parameters,
        descriptor_size=network.descriptor_size, stride=network.stride, color=network.color,
        size_multiple=network.size_multiple, **about,  # type: ignore[arg-type]
    )


def export_onnx(
    module: nn.Module, outputs: Sequence[str], metadata: ModelMetadata, path: Path, images: Sequence[np.ndarray]
) -> float:
    """Write `module` to `path` and return its largest relative difference from PyTorch over `images`.

    images: H×W×3 BGR uint8, best of several sizes, so that a size frozen into the graph is found out.
    Raises InputError, and leaves an existing file alone, where the difference is above TOLERANCE.
    """
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        beside = Path(folder) / path.name
        # A size that is no image's, so that nothing can be right by accident.
        example = torch.rand(1, metadata.channels, 4 * metadata.size_multiple, 6 * metadata.size_multiple)
        axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in ("image", *outputs)}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (example,), str(beside), input_names=["image"], output_names=list(outputs),
                              dynamic_axes=axes, opset_version=OPSET, dynamo=False)
        model = onnx.load(str(beside))
        onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(beside))
        blobs = [network_input(image, metadata) for image in images]
        difference = max(largest_difference(module, beside, outputs, blob) for blob in blobs)
        if not difference <= TOLERANCE:
            raise InputError(f"{path} not written: ONNX differs from PyTorch by {difference:.2g} of the largest value "
                             f"(at most {TOLERANCE:g} is allowed)")
        os.replace(beside, path)
    return difference


def largest_difference(module: nn.Module, path: Path, outputs: Sequence[str], blob: np.ndarray) -> float:
    """max |ONNX − PyTorch| / max |PyTorch| over the outputs for one input; inf for another shape or no number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    computed = session.run(list(outputs), {"image": blob})
    with torch.no_grad():
        expected: Sequence[Tensor] = module(torch.from_numpy(blob))
    worst = 0.0
    for ours, theirs in zip(computed, expected):
        reference = theirs.numpy()
        if ours.shape != reference.shape or not np.isfinite(ours).all():
            return float("inf")
        worst = max(worst, float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-12)))
    return worst
