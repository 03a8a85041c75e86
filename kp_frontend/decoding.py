"""Network maps → Features: non-maximum suppression, top-k, sub-pixel position, descriptors at the keypoints only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.features import Features
from kp_frontend.model_file import ModelMetadata

Outputs = Mapping[str, np.ndarray]
Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class View:
    """What of the network's input is image: its upper left `height` × `width`; the rest is padding.

    mask: H×W uint8, no keypoints where it is 0.
    """

    height: int
    width: int
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class FullParameters:
    """nms_radius, border: pixels.  threshold: keypoints have a larger score.

    refine_radius: 0 = pixel positions, else the soft-argmax of the (2r+1)² scores around (see `soft_argmax`).
    """

    nms_radius: int = 2
    border: int = 0
    refine_radius: int = 0
    threshold: float = 0.0


@dataclass(frozen=True)
class CellsParameters:
    """cell: pixels.  cross_ratio: reach of an offset of ±1, in half cells.  align_corners: as in KP2D's sampling.

    nms_radius: 0 = none, else pixels within which only the best is kept.  threshold: as in FullParameters.
    """

    cell: int = 8
    cross_ratio: float = 2.0
    align_corners: bool = True
    threshold: float = 0.0
    nms_radius: int = 0


@dataclass(frozen=True)
class PointsParameters:
    """Of networks that describe points which a classical detector found (``extractors.residual``).

    detector: ``sift``, ``rootsift`` or ``surf``.  upright, contrast: the detector's options, None = its default.
    fusion: whether the network takes the detector's descriptors beside its points.
    """

    detector: str = "sift"
    upright: bool = False
    contrast: float | None = None
    fusion: bool = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs of the network beside the image: 1×N×2 pixels, 1×N×d descriptors of unit length."""
        return ("keypoints", "descriptors") if self.fusion else ("keypoints",)


@dataclass(frozen=True)
class Decoder:
    """How the maps of a family of networks are read.

    parameters: dataclass of what the metadata's decoder_parameters may hold; where the network takes more than the
        image, its ``inputs`` names that.  outputs: maps that must be there.
    detect: (outputs, parameters, view, top_k) → keypoints N×2 float32 and scores N, best first.
    describe: (outputs, metadata, parameters, keypoints) → N×D float32 of unit length.
    """

    parameters: type
    outputs: tuple[str, ...]
    detect: Callable[[Outputs, Any, View, int], Points]
    describe: Callable[[Outputs, ModelMetadata, Any, np.ndarray], np.ndarray]


def find_decoder(metadata: ModelMetadata, overrides: Mapping[str, Any]) -> tuple[Decoder, Any]:
    """The decoder that the metadata names, with its parameters; `overrides` win where they are not None.

    Raises InputError for an unknown decoder or parameter.
    """
    if metadata.decoder not in DECODERS:
        raise unknown_name("decoder in the model's metadata", metadata.decoder, DECODERS)
    decoder = DECODERS[metadata.decoder]
    values = {**metadata.decoder_parameters, **{key: value for key, value in overrides.items() if value is not None}}
    try:
        return decoder, decoder.parameters(**values)
    except TypeError as error:
        raise InputError(f"parameters of decoder {metadata.decoder!r}: {error}") from error


def further_inputs(metadata: ModelMetadata) -> tuple[str, ...]:
    """Names of the inputs that a model takes beside its image; see `find_decoder` for the errors."""
    return getattr(find_decoder(metadata, {})[1], "inputs", ())


def decode(
    outputs: Outputs, metadata: ModelMetadata, view: View, top_k: int = 1000,
    overrides: Mapping[str, Any] | None = None,
) -> Features:
    """At most `top_k` features of one image from its maps, best first; `overrides`: of the decoder's parameters."""
    decoder, parameters = find_decoder(metadata, overrides or {})
    keypoints, scores = decoder.detect(outputs, parameters, view, top_k)
    return Features(keypoints, scores, decoder.describe(outputs, metadata, parameters, keypoints), metadata.metric)


def find_peaks(
    scores: np.ndarray, top_k: int, *, radius: int, border: int = 0, threshold: float = 0.0,
    mask: np.ndarray | None = None,
) -> Points:
    """The `top_k` largest local maxima of an H×W float32 map: N×2 int (x, y) and N scores, best first.

    A maximum has the largest value within the square of `radius` and is above `threshold`; it may lie neither
    within `border` of the edge nor where `mask` is 0, but suppresses its neighbours all the same.
    """
    height, width = scores.shape
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    peak = scores > threshold
    if radius:
        peak &= scores == cv2.dilate(scores, kernel)
    if border:
        inner = np.zeros_like(peak)
        inner[border : height - border, border : width - border] = True
        peak &= inner
    if mask is not None:
        peak &= mask != 0
    index = np.flatnonzero(peak)
    best = index[_largest(scores.ravel()[index], top_k)]
    return np.stack([best % width, best // width], axis=1), scores.ravel()[best]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, largest first; ties keep their order."""
    if len(values) > count:
        cut = -np.partition(-values, count - 1)[count - 1]
        kept = np.flatnonzero(values >= cut)
    else:
        kept = np.arange(len(values))
    return kept[np.argsort(-values[kept], kind="stable")][:count]


def soft_argmax(scores: np.ndarray, peaks: np.ndarray, radius: int) -> np.ndarray:
    """Sub-pixel positions, N×2 float32: the mean position within the square of `radius`, weighted by score.

    With scores that are probabilities this is the soft-argmax of their logits. scores: H×W ≥ 0; peaks: N×2 int.
    """
    if not radius:
        return peaks.astype(np.float32)
    steps = np.arange(-radius, radius + 1)
    padded = cv2.copyMakeBorder(scores, radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=0)
    rows, columns = peaks[:, 1, None, None] + steps[:, None] + radius, peaks[:, 0, None, None] + steps + radius
    patches = padded[rows, columns]
    total = np.maximum(patches.sum(axis=(1, 2)), np.float32(1e-20))
    shift = np.stack([patches.sum(axis=1) @ steps, patches.sum(axis=2) @ steps], axis=1) / total[:, None]
    return (peaks + shift).astype(np.float32)


def fit_peaks(scores: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Sub-pixel positions, N×2 float32: the top of the quadric through the 3×3 values around each peak.

    For maps of any scale, where `soft_argmax` has no meaning. A peak whose top lies a pixel off or more stays.
    """
    padded = cv2.copyMakeBorder(scores, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    steps = np.arange(3)
    patches = padded[peaks[:, 1, None, None] + steps[:, None], peaks[:, 0, None, None] + steps].astype(np.float64)
    middle = patches[:, 1, 1]
    dx, dy = (patches[:, 1, 2] - patches[:, 1, 0]) / 2, (patches[:, 2, 1] - patches[:, 0, 1]) / 2
    dxx = patches[:, 1, 2] + patches[:, 1, 0] - 2 * middle
    dyy = patches[:, 2, 1] + patches[:, 0, 1] - 2 * middle
    dxy = (patches[:, 2, 2] - patches[:, 2, 0] - patches[:, 0, 2] + patches[:, 0, 0]) / 4
    determinant = dxx * dyy - dxy * dxy
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], axis=1) / determinant[:, None]
    good = (determinant > 0) & (np.abs(shift) < 1).all(axis=1)
    return (peaks + np.where(good[:, None], shift, 0)).astype(np.float32)


def sample_descriptors(descriptors: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear samples of a D×h×w map at N×2 (x, y) in cells of that map, to unit length: N×D float32.

    Points outside take the edge's value; a zero vector stays zero.
    """
    size, height, width = descriptors.shape
    x = np.clip(points[:, 0].astype(np.float32), 0, width - 1)
    y = np.clip(points[:, 1].astype(np.float32), 0, height - 1)
    left, top = np.minimum(x.astype(np.intp), max(width - 2, 0)), np.minimum(y.astype(np.intp), max(height - 2, 0))
    order = np.argsort(top * width + left)  # neighbours in memory one after the other: a third less time on a large map
    x, y, left, top = x[order], y[order], left[order], top[order]
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    x, y = x - left, y - top
    flat = descriptors.reshape(size, -1)
    total = flat.take(top * width + left, axis=1) * ((1 - x) * (1 - y))
    for row, column, weight in ((top, right, x * (1 - y)), (bottom, left, (1 - x) * y), (bottom, right, x * y)):
        total += flat.take(row * width + column, axis=1) * weight
    sampled = np.empty((len(points), size), np.float32)
    sampled[order] = total.T
    return sampled / np.maximum(np.linalg.norm(sampled, axis=1, keepdims=True), np.float32(1e-12))


def _detect_full(outputs: Outputs, parameters: FullParameters, view: View, top_k: int) -> Points:
    scores = np.ascontiguousarray(outputs["scores"][0, 0, : view.height, : view.width])
    peaks, values = find_peaks(
        scores, top_k, radius=parameters.nms_radius, border=parameters.border,
        threshold=parameters.threshold, mask=view.mask,
    )
    return _inside(soft_argmax(scores, peaks, parameters.refine_radius), view), values


def _describe_full(
    outputs: Outputs, metadata: ModelMetadata, parameters: FullParameters, keypoints: np.ndarray
) -> np.ndarray:
    return sample_descriptors(outputs["descriptors"][0], _to_cells(keypoints, metadata.stride))


def _to_cells(points: np.ndarray, stride: int) -> np.ndarray:
    """Pixels → cells of a map; the centre of cell i is pixel stride·i + (stride - 1) / 2."""
    return (points - (stride - 1) / 2) / stride


def _detect_cells(outputs: Outputs, parameters: CellsParameters, view: View, top_k: int) -> Points:
    """A point a cell, at the cell's centre moved by the offset, which reaches into the neighbours (KP2D, V2)."""
    half = (parameters.cell - 1) / 2
    rows, columns = -(-view.height // parameters.cell), -(-view.width // parameters.cell)  # cells in the image
    scores = outputs["scores"][0, 0, :rows, :columns].ravel()
    offsets = outputs["offsets"][0, :, :rows, :columns]
    centres = np.indices((rows, columns))[::-1] * parameters.cell + half
    points = _inside((centres + parameters.cross_ratio * half * offsets).reshape(2, -1).T.astype(np.float32), view)
    valid = scores > parameters.threshold
    if view.mask is not None:
        x, y = np.rint(points).astype(np.intp).T
        valid &= view.mask[y, x] != 0
    keep = np.flatnonzero(valid)
    best = keep[_largest(scores[keep], len(keep) if parameters.nms_radius else top_k)]
    if parameters.nms_radius:
        best = best[_spread(points[best], scores[best], view, parameters.nms_radius)][:top_k]
    return points[best], scores[best]


def _spread(points: np.ndarray, scores: np.ndarray, view: View, radius: int) -> np.ndarray:
    """Indices of the points, given best first, that are the best within `radius` pixels."""
    x, y = np.rint(points).astype(np.intp).T
    pixels, first = np.unique(y * view.width + x, return_index=True)
    canvas = np.full((view.height, view.width), -np.inf, np.float32)
    canvas.flat[pixels] = scores[first]
    peaks, _ = find_peaks(canvas, len(points), radius=radius, threshold=-np.inf)
    return first[np.searchsorted(pixels, peaks[:, 1] * view.width + peaks[:, 0])]


def _describe_cells(
    outputs: Outputs, metadata: ModelMetadata, parameters: CellsParameters, keypoints: np.ndarray
) -> np.ndarray:
    descriptors = outputs["descriptors"][0]
    if not parameters.align_corners:
        return sample_descriptors(descriptors, _to_cells(keypoints, metadata.stride))
    size = np.array(outputs["scores"].shape[:1:-1], np.float32) * parameters.cell  # of the padded input, width first
    last = np.array(descriptors.shape[:0:-1], np.float32) - 1
    return sample_descriptors(descriptors, keypoints * (last / (size - 1)))


def _detect_points(outputs: Outputs, parameters: PointsParameters, view: View, top_k: int) -> Points:
    raise InputError("decoder 'points': a classical detector finds the keypoints, they are not in the network's maps; "
                     "use load_extractor")


def _describe_points(
    outputs: Outputs, metadata: ModelMetadata, parameters: PointsParameters, keypoints: np.ndarray
) -> np.ndarray:
    return outputs["point_descriptors"][0]


def _inside(points: np.ndarray, view: View) -> np.ndarray:
    return np.clip(points, 0, np.array([view.width - 1, view.height - 1], np.float32))


DECODERS = {
    "full": Decoder(FullParameters, ("scores", "descriptors"), _detect_full, _describe_full),
    "cells": Decoder(CellsParameters, ("scores", "offsets", "descriptors"), _detect_cells, _describe_cells),
    "points": Decoder(PointsParameters, ("point_descriptors",), _detect_points, _describe_points),
}
