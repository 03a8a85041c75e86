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
from kp_frontend.settings import read_settings

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

    def __post_init__(self) -> None:
        if min(self.nms_radius, self.border, self.refine_radius) < 0:
            raise InputError(f"expected nms_radius, border and refine_radius ≥ 0: {self}")


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

    def __post_init__(self) -> None:
        if self.cell < 1 or self.nms_radius < 0:
            raise InputError(f"expected cell ≥ 1 and nms_radius ≥ 0: {self}")


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

    Raises InputError for an unknown decoder or parameter, and for a value that a parameter cannot have.
    """
    if metadata.decoder not in DECODERS:
        raise unknown_name("decoder in the model's metadata", metadata.decoder, DECODERS)
    decoder = DECODERS[metadata.decoder]
    values = {**metadata.decoder_parameters, **{key: value for key, value in overrides.items() if value is not None}}
    return decoder, read_settings(f"decoder {metadata.decoder!r}", decoder.parameters, values)


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
    width = scores.shape[1]
    peak = scores > threshold
    if radius:
        peak &= scores == cv2.dilate(scores, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
    if mask is not None:
        peak &= mask != 0
    if border:
        peak[:border], peak[-border:], peak[:, :border], peak[:, -border:] = False, False, False, False
    index = np.flatnonzero(peak)
    values = scores.ravel().take(index)
    best = _largest(values, top_k)
    y, x = np.divmod(index[best], width)
    return np.stack([x, y], axis=1), values[best]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, largest first; ties keep their order."""
    if len(values) <= count:
        return np.argsort(-values, kind="stable")
    place = len(values) - count
    kept = np.flatnonzero(values >= np.partition(values, place)[place])
    return kept[np.argsort(-values[kept], kind="stable")[:count]]


def soft_argmax(scores: np.ndarray, peaks: np.ndarray, radius: int) -> np.ndarray:
    """Sub-pixel positions, N×2 float32: the mean position within the square of `radius`, weighted by score.

    With scores that are probabilities this is the soft-argmax of their logits. scores: H×W ≥ 0; peaks: N×2 int.
    """
    if not radius:
        return peaks.astype(np.float32)
    patches, steps = _patches(scores, peaks, radius, cv2.BORDER_CONSTANT), np.arange(-radius, radius + 1)
    down, across = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    sums = patches @ np.stack([across, down, np.ones_like(down)], axis=1).astype(np.float32)
    return (peaks + sums[:, :2] / np.maximum(sums[:, 2:], np.float32(1e-20))).astype(np.float32)


def _patches(values: np.ndarray, peaks: np.ndarray, radius: int, beyond: int) -> np.ndarray:
    """N×(2r+1)² values of an H×W map round N×2 int peaks (x, y), row by row; beyond: OpenCV's kind of border."""
    padded = cv2.copyMakeBorder(values, radius, radius, radius, radius, beyond)
    width, steps = padded.shape[1], np.arange(2 * radius + 1)
    window = (steps[:, None] * width + steps).ravel()
    return padded.ravel().take((peaks[:, 1] * width + peaks[:, 0])[:, None] + window)


def fit_peaks(scores: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Sub-pixel positions, N×2 float32: the top of the quadric through the 3×3 values around each peak.

    For maps of any scale, where `soft_argmax` has no meaning. A peak whose top lies a pixel off or more stays.
    """
    patches = _patches(scores, peaks, 1, cv2.BORDER_REPLICATE).reshape(-1, 3, 3).astype(np.float64)
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
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1) * width
    x, y, top = x - left.astype(np.float32), y - top.astype(np.float32), top * width
    corners = np.stack([top + left, top + right, below + left, below + right])
    weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y])
    flat = descriptors.reshape(size, -1)
    if flat.shape[1] <= _CELLS_A_POINT * len(points):
        sampled = np.einsum("knd,kn->nd", cv2.transpose(flat).take(corners, axis=0), weights)
    else:
        order = np.argsort(corners[0])  # neighbours in memory one after the other
        near = flat.take(corners[:, order], axis=1)
        near *= weights[:, order]
        sampled = np.empty((len(points), size), np.float32)
        sampled[order] = near.sum(axis=1).T
    lengths = np.sqrt(np.einsum("nd,nd->n", sampled, sampled))
    sampled /= np.maximum(lengths, np.float32(1e-12))[:, None]
    return sampled


_CELLS_A_POINT = 8  # of a map; with more, turning all of it so that a descriptor lies in one piece takes longer


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
    pixels = (y * view.width + x)[::-1]  # the best last: of those of one pixel it stays
    canvas, which = np.full(view.height * view.width, -np.inf, np.float32), np.empty(view.height * view.width, np.intp)
    canvas[pixels], which[pixels] = scores[::-1], np.arange(len(points))[::-1]
    peaks, _ = find_peaks(canvas.reshape(view.height, view.width), len(points), radius=radius, threshold=-np.inf)
    return which[peaks[:, 1] * view.width + peaks[:, 0]]


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
    return outputs["point_descriptors"][0].copy()  # the engine's own is good until its next run


def _inside(points: np.ndarray, view: View) -> np.ndarray:
    return np.clip(points, 0, np.array([view.width - 1, view.height - 1], np.float32))


DECODERS = {
    "full": Decoder(FullParameters, ("scores", "descriptors"), _detect_full, _describe_full),
    "cells": Decoder(CellsParameters, ("scores", "offsets", "descriptors"), _detect_cells, _describe_cells),
    "points": Decoder(PointsParameters, ("point_descriptors",), _detect_points, _describe_points),
}
