"""How far an exported file is from its PyTorch original on images, and how far it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from kp_frontend.decoding import Outputs, View, decode, find_decoder
from kp_frontend.engines import Engine
from kp_frontend.extractors.network_input import network_input
from kp_frontend.model_file import ModelMetadata
from kp_frontend.sparse import pad_points, read_sparse

TOLERANCE = 1e-3
"""Largest difference of a float32 file from PyTorch, relative to the largest value of that output."""
FEWEST = 20
"""Keypoints of an image below which their share says nothing."""
TOP_K = 1000
"""Keypoints that are compared, of the dense profile."""
LEAST = ("within_pixel", "cosine")
"""Figures that are better when larger."""


@dataclass(frozen=True)
class Sample:
    """One input to compare on.  image: H×W×3 BGR uint8.  points: what the network takes beside it, 1×N×… each."""

    image: np.ndarray
    points: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        """Points that are given."""
        return next((values.shape[1] for values in self.points.values()), 0)

    def inputs(self, metadata: ModelMetadata) -> dict[str, np.ndarray]:
        """Inputs of a model of `metadata`, by name."""
        points = pad_points(self.points, metadata.top_k) if metadata.top_k else self.points
        return {"image": network_input(self.image, metadata), **points}


@dataclass(frozen=True)
class Bounds:
    """What a file may differ by, by figure of `figures_of`.

    margin: points whose scores lie nearer to that of the last one, as a share of the largest score, may change places
        with those that are left out.
    """

    margin: float = 0.0
    difference: float = inf
    difference_rms: float = inf
    scores: float = inf
    within_pixel: float = 0.0
    cosine: float = 0.0

    def broken(self, figures: Mapping[str, float]) -> str:
        """What is out of bounds, in words; empty where nothing is."""
        wrong = []
        for name, value in figures.items():
            bound, least = getattr(self, name), name in LEAST
            if not (isfinite(value) and (value >= bound if least else value <= bound)):
                wrong.append(f"{name} is {value:.2g}, {'at least' if least else 'at most'} {bound:g} is allowed")
        return "; ".join(wrong)


BOUNDS = {
    "fp32": Bounds(margin=1e-4, difference=TOLERANCE, difference_rms=TOLERANCE, scores=TOLERANCE, within_pixel=0.98,
                   cosine=0.999),
    "fp16": Bounds(margin=5e-3, difference=0.05, difference_rms=5e-3, scores=0.05, within_pixel=0.9, cosine=0.999),
    "int8": Bounds(margin=2e-2, within_pixel=0.7, cosine=0.95),
}
"""By precision.  Half precision has 11 bits, of which a deep network keeps about 8; int8 moves weak points, and what
that does to matching is for `evaluate` to say."""


def figures_of(
    engines: Sequence[Engine], reference: Engine, samples: Sequence[Sample], margin: float = 0.0
) -> dict[str, float]:
    """The worst of all engines and samples.

    reference: of the dense profile in float32.  margin: see `Bounds`.
    difference, difference_rms: largest and root mean square of engine − reference, relative to those of the
        reference's values, where both give maps; inf for another shape or no number.
    scores: largest difference of the best scores, of the second best and so on, relative to the largest.
    cosine: median cosine of the engine's descriptors and the reference's at the same points.
    within_pixel: share of the reference's keypoints, less those in the margin, that have one of the engine's within a
        pixel; of images with FEWEST such keypoints or more.
    """
    measured: list[dict[str, float]] = []
    for sample in samples:
        given = sample.inputs(reference.metadata)
        expected = reference.run(**given)
        for engine in engines:
            inputs = sample.inputs(engine.metadata)
            outputs = engine.run(**inputs)
            if sample.points:
                outputs = {name: values[:, : sample.count] for name, values in outputs.items()}
            maps = engine.metadata.profile == "dense" or sample.points
            figures = _differences(outputs, expected) if maps else {}
            if all(map(isfinite, figures.values())):
                figures |= _agreement(outputs, engine.metadata, expected, reference.metadata, inputs, margin)
            measured.append(figures)
    names = dict.fromkeys(name for figures in measured for name in figures)
    return {name: (min if name in LEAST else max)(figures[name] for figures in measured if name in figures)
            for name in names}


def _differences(outputs: Outputs, expected: Outputs) -> dict[str, float]:
    largest, squares = 0.0, 0.0
    for name, reference in expected.items():
        found = outputs[name]
        if found.shape != reference.shape or not np.isfinite(found).all():
            return {"difference": inf, "difference_rms": inf}
        difference = (found - reference).astype(np.float64)
        largest = max(largest, np.abs(difference).max(initial=0) / np.abs(reference).max(initial=1e-12))
        squares = max(squares, np.square(difference).sum() / max(np.square(reference, dtype=np.float64).sum(), 1e-24))
    return {"difference": float(largest), "difference_rms": float(np.sqrt(squares))}


def _agreement(
    outputs: Outputs, metadata: ModelMetadata, expected: Outputs, reference: ModelMetadata,
    inputs: Mapping[str, np.ndarray], margin: float,
) -> dict[str, float]:
    """scores, cosine and within_pixel; cosine alone of points that are given."""
    if len(inputs) > 1:
        both = expected["point_descriptors"][0] * outputs["point_descriptors"][0]
        return {"cosine": float(np.median(both.sum(axis=1)))}
    view, top_k = View(*inputs["image"].shape[2:]), metadata.top_k or TOP_K
    decoder, parameters = find_decoder(metadata, {})
    wanted = decode(expected, reference, view, top_k)
    if metadata.profile == "dense":
        found = decode(outputs, metadata, view, top_k)
    else:
        found = read_sparse(outputs, metadata, parameters, view, top_k)
    common = min(len(wanted), len(found))  # a score at the threshold may be on either side of it
    apart = np.abs(wanted.scores[:common] - found.scores[:common]).max(initial=0)
    figures = {"scores": float(apart / wanted.scores.max(initial=1e-12))}
    if len(found):
        descriptors = decoder.describe(expected, reference, parameters, found.keypoints)
        figures["cosine"] = float(np.median((descriptors * found.descriptors).sum(axis=1)))
    clear = wanted.scores > wanted.scores[-1:] + margin * wanted.scores[:1]
    if clear.sum() >= FEWEST:
        distances = np.linalg.norm(wanted.keypoints[clear][:, None] - found.keypoints, axis=2)
        figures["within_pixel"] = float((distances.min(axis=1, initial=inf) <= 1).mean())
    return figures
