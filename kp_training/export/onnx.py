"""A trained network as an ONNX file with metadata, written only after it agreed with PyTorch on images."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.atomic import written_whole
from kp_frontend.decoding import further_inputs
from kp_frontend.engines import Request
from kp_frontend.engines.onnxruntime import load
from kp_frontend.errors import InputError
from kp_frontend.model_file import KEY, ModelMetadata
from kp_frontend.sparse import model_outputs
from kp_training.deployment import TorchEngine
from kp_training.export.checks import BOUNDS, Sample, figures_of
from kp_training.export.half import Half
from kp_training.export.lengths import spell_out_lengths
from kp_training.export.sparse import sparse_module

OPSET = 18  # opset-20 GridSample gives wrong values on TensorRT 10.13
ADVICE = {
    "fp32": "the network does something that its graph does not, at some size",
    "fp16": "export it as fp32",
    "int8": "give images of the robot's own as --calibration, or export it as fp16 or fp32",
}
"""What to do about a file that differs too much, by precision."""
Points = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def export_onnx(
    module: nn.Module, outputs: Sequence[str], metadata: ModelMetadata, path: Path, images: Sequence[np.ndarray],
    points: Points | None = None, calibration: Sequence[np.ndarray] = (),
) -> dict[str, float]:
    """Write `module` to `path` as the file that `metadata` describes; returns what its ``checks`` became.

    module: deployed, in evaluation mode, of the dense profile.  outputs: names of what it gives.
    images: H×W×3 BGR uint8 to compare on, best of several sizes, so that a size frozen into the graph is found out; a
        file for one size gets them stretched to it.  calibration: as images, for int8.
    points: what the module takes beside an image, see `Decoding.points`; B×N×… each.
    Raises InputError, and leaves an existing file alone, where the file differs from PyTorch by more than BOUNDS.
    """
    check_size(metadata)
    samples = _samples(images, metadata, points)
    example = _example(metadata, samples[0])
    network = Half(module, example).eval() if metadata.precision == "fp16" else module
    plain = replace(metadata, profile="dense", top_k=0, precision="fp32", input_dtype="float32")
    reference = TorchEngine(module, plain, outputs, torch.device("cpu"))
    compared = [TorchEngine(network, plain, outputs, torch.device("cpu"))] if network is not module else []

    _make_folder(path)
    with written_whole(path) as beside:
        trace(network, metadata, beside, example)
        if metadata.precision == "int8":
            _quantize(beside, metadata, _samples(calibration, metadata, points))
        describe(beside, metadata)
        bounds = BOUNDS[metadata.precision]
        figures = figures_of([*compared, load(Request(beside))], reference, samples, bounds.margin)
        broken = bounds.broken(figures)
        if broken:
            raise InputError(f"{path} not written: on images it differs from PyTorch ({broken}); "
                             f"{ADVICE[metadata.precision]}")
        if metadata.profile == "sparse" and "cosine" not in figures:
            raise InputError(f"{path} not written: neither PyTorch nor the file finds a keypoint on {len(images)} "
                             "images, so that nothing is checked; give others as --check-image, or train it longer")
        describe(beside, replace(metadata, checks=figures))
    return figures


def _make_folder(path: Path) -> None:
    """The folder of `path`, if there is none; InputError where there cannot be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror}); give another place") from error


def check_size(metadata: ModelMetadata) -> None:
    """InputError for a fixed size that the network cannot take."""
    multiple, size = metadata.size_multiple, (metadata.height, metadata.width)
    if any(side % multiple for side in size) or (size != (0, 0) and min(size) < multiple):
        near = [[max(rounded(side / multiple) * multiple, multiple) for side in size]
                for rounded in (math.floor, math.ceil)]
        sizes = dict.fromkeys(f"{height}x{width}" for height, width in near)
        raise InputError(f"size {size[0]}x{size[1]}: height and width must be multiples of {multiple}, such as "
                         f"{' or '.join(sizes)} (the runtime pads smaller images to it)")


def _samples(images: Sequence[np.ndarray], metadata: ModelMetadata, points: Points | None) -> list[Sample]:
    """InputError where a network that describes points has none on any image."""
    if metadata.height:
        size = metadata.width, metadata.height
        images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    if points is None:
        return [Sample(image, {}) for image in images]
    samples = [Sample(image, {name: values[:, : metadata.top_k or None] for name, values in points(image).items()})
               for image in images]
    samples = [sample for sample in samples if sample.count]
    if not samples:
        raise InputError(f"no points on any of {len(images)} images to check on; give others")
    return samples


def _example(metadata: ModelMetadata, sample: Sample) -> tuple[Tensor, ...]:
    """What the network is traced with: small, of a size that is no image's, so that nothing is right by accident."""
    image = torch.rand(1, metadata.channels, 4 * metadata.size_multiple, 6 * metadata.size_multiple)
    _, *points = sample.inputs(metadata).values()
    return (image, *map(torch.from_numpy, points))


class _FromBytes(nn.Module):
    """`network` for an image of uint8, by the same product as the runtime's own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, *points: Tensor) -> Any:
        return self.network(image.float() * (1 / 255), *points)


def trace(network: nn.Module, metadata: ModelMetadata, path: Path, example: Sequence[Tensor]) -> None:
    """Write the graph of `network`, whose outputs are of the dense profile and float32, as `metadata` describes it.

    example: a float image, and points where it takes some.
    """
    import onnx

    outputs, names = model_outputs(metadata), ["image", *further_inputs(metadata)]
    inputs = tuple(example)
    if metadata.profile == "sparse":
        network = sparse_module(network, replace(metadata, profile="dense", top_k=0), metadata.top_k)
    if metadata.input_dtype == "uint8":
        network, inputs = _FromBytes(network), ((255 * inputs[0]).to(torch.uint8), *inputs[1:])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), inputs, str(path), input_names=names, output_names=list(outputs),
                          dynamic_axes=_dynamic_axes(metadata, names, outputs), opset_version=OPSET, dynamo=False)
    model = onnx.load(str(path))
    spell_out_lengths(model.graph)
    if metadata.height:
        _fix_size(model.graph, metadata)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.save(model, str(path))


def _dynamic_axes(
    metadata: ModelMetadata, names: Sequence[str], outputs: Sequence[str]
) -> dict[str, dict[int, str]]:
    axes = {"image": {2: "image_height", 3: "image_width"}}
    if metadata.profile == "sparse":
        return axes
    if len(names) > 1:
        return axes | {name: {1: "points"} for name in (*names[1:], *outputs)}
    return axes | {name: {2: f"{name}_height", 3: f"{name}_width"} for name in outputs}


def _fix_size(graph: Any, metadata: ModelMetadata) -> None:
    """The graph, traced for any size, for that of the metadata: a large trace in float16 would take minutes."""
    image = next(entry for entry in graph.input if entry.name == "image").type.tensor_type.shape.dim
    image[2].dim_value, image[3].dim_value = metadata.height, metadata.width


def _quantize(path: Path, metadata: ModelMetadata, samples: Sequence[Sample]) -> None:
    from kp_training.export.quantize import quantize

    with TemporaryDirectory() as folder:
        source = Path(shutil.move(path, Path(folder) / path.name))
        quantize(source, path, [sample.inputs(metadata) for sample in samples], metadata)


def describe(path: Path, metadata: ModelMetadata) -> None:
    """Put the metadata into an ONNX file, which is checked."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
