"""The sparse profile: keypoints, scores and descriptors that come out of the graph, K of each, as Features.

Of decoder ``points`` it means the same network for a fixed number K of points.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kp_frontend.decoding import Outputs, View, find_decoder
from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_frontend.model_file import ModelMetadata

_LOG = logging.getLogger(__name__)
LARGEST_TOP_K = 3840  # of TensorRT's TopK
_OUTPUTS = ("keypoints", "scores", "descriptors")


def model_outputs(metadata: ModelMetadata) -> tuple[str, ...]:
    """Outputs of a model file that the runtime reads.

    sparse: 1×K×2 pixels of the network's input, 1×K scores (0 = padding, best first), 1×K×D of unit length.
    Raises InputError for an unknown decoder.
    """
    decoder, _ = find_decoder(metadata, {})
    return decoder.outputs if metadata.profile == "dense" or metadata.decoder == "points" else _OUTPUTS


def check_outputs(name: str, metadata: ModelMetadata, given: Collection[str]) -> None:
    """InputError unless the model `name` gives the outputs that the runtime reads."""
    missing = set(model_outputs(metadata)) - set(given)
    if missing:
        raise InputError(f"{name}: the model lacks the outputs {sorted(missing)} of decoder {metadata.decoder!r}, "
                         f"{metadata.profile} profile; export it again")


def check_descriptors(name: str, metadata: ModelMetadata, inputs: Outputs, outputs: Outputs) -> None:
    """InputError unless the descriptors that `name` made of `inputs` have the shape that its metadata says."""
    key = model_outputs(metadata)[-1]
    height, width = inputs["image"].shape[2:]
    expected: tuple[int, ...]
    if "keypoints" in inputs:
        expected = (1, inputs["keypoints"].shape[1], metadata.descriptor_size)
    elif metadata.profile == "sparse":
        expected = (1, metadata.top_k, metadata.descriptor_size)
    else:
        expected = (1, metadata.descriptor_size, height // metadata.stride, width // metadata.stride)
    if outputs[key].shape != expected:
        seen, wanted = ("×".join(map(str, shape)) for shape in (outputs[key].shape, expected))
        raise InputError(
            f"{name}: the model makes {key} {seen} of an image of {width}×{height}, but its metadata "
            f"(descriptor_size {metadata.descriptor_size}, stride {metadata.stride}, top_k {metadata.top_k}) says "
            f"{wanted}; export it again"
        )


def check_top_k(top_k: int) -> None:
    """InputError unless a graph can give `top_k` points."""
    if not 1 <= top_k <= LARGEST_TOP_K:
        raise InputError(f"top_k is {top_k}; a sparse file has 1 to {LARGEST_TOP_K} points (TensorRT's limit)")


def warn_of_fewer(name: str, metadata: ModelMetadata, top_k: int) -> None:
    """Say once that a sparse file has fewer points than are asked for."""
    if metadata.top_k and top_k > metadata.top_k:
        _LOG.warning("%s gives at most %d features, %d were asked for: that is its sparse file's top_k; for more, "
                     "export it with a larger --top-k, or the dense profile", name, metadata.top_k, top_k)


def read_sparse(
    outputs: Mapping[str, np.ndarray], metadata: ModelMetadata, parameters: Any, view: View, top_k: int = 1000
) -> Features:
    """At most `top_k` features of one image, best first; none in the padding or where the mask is 0.

    parameters: of the decoder; a larger threshold than the graph's cuts further.  The arrays are copies.
    """
    keypoints, scores, descriptors = (outputs[name][0] for name in _OUTPUTS)
    pixels = np.rint(keypoints).astype(np.intp)
    kept = (scores > max(parameters.threshold, 0)) & (pixels <= _last_pixel(metadata, parameters, view)).all(1)
    if view.mask is not None:
        index = np.flatnonzero(kept)
        kept[index] = view.mask[pixels[index, 1], pixels[index, 0]] != 0
    index = np.flatnonzero(kept)[:top_k]
    corner = np.array([view.width - 1, view.height - 1], np.float32)
    return Features(np.clip(keypoints[index], 0, corner), scores[index], descriptors[index], metadata.metric)


def _last_pixel(metadata: ModelMetadata, parameters: Any, view: View) -> np.ndarray:
    """Largest x and y of a keypoint; where there is padding, the graph's border was that of the padding."""
    size = np.array([view.width, view.height])
    padded = size % metadata.size_multiple != 0
    return size - 1 - np.where(padded, getattr(parameters, "border", 0), 0)


def pad_points(points: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """`points` (1×N×… each, N ≤ count) with rows of zeros up to `count`, as a file for a fixed number takes them."""
    def padded(values: np.ndarray) -> np.ndarray:
        filled = np.zeros((1, count, values.shape[2]), np.float32)
        filled[:, : values.shape[1]] = values
        return filled

    return {name: padded(values) for name, values in points.items()}
