"""How far an exported file is from its PyTorch original on images, and how far it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from kp_frontend.decoding import Outputs, View, decode, find_decoder
from kp_frontend.engines import Engine
from kp_frontend.extractors.network_input import network_input
from kp_frontend.features import Features
from kp_frontend.model_file import ModelMetadata
from kp_frontend.sparse import pad_points, read_sparse

TOLERANCE = 1e-3
"""Largest difference of a float32 file from PyTorch, relative to the largest value of that output."""
FEWEST = 20
"""Keypoints of an image below which their share says nothing."""
TOP_K = 1000
"""Keypoints that are compared, of the dense profile."""
LEAST = ("points", "within_pixel", "cosine")
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

    margin: points whose scores lie nearer to where the other's end, as a share of the largest score, may change places
        with those that are left out.
    """

    margin: float = 0.0
    difference: float = inf
    difference_rms: float = inf
    scores: float = inf
    points: float = 0.0
    within_pixel: float = 0.0
    extra: float = inf
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
    "fp32": Bounds(margin=1e-4, difference=TOLERANCE, difference_rms=TOLERANCE, scores=TOLERANCE, points=0.9,
                   within_pixel=0.98, extra=0.02, cosine=0.999),
    "fp16": Bounds(margin=5e-3, difference=0.05, difference_rms=5e-3, scores=0.05, points=0.4, within_pixel=0.9,
                   extra=0.6, cosine=0.999),
    "int8": Bounds(margin=2e-2, points=0.5, within_pixel=0.7, extra=0.3, cosine=0.95),
}
"""By precision.  Half precision has 11 bits, of which a deep network keeps about 8; where scores are flat, as those of
an untrained network, it makes several maxima of one (trained ones: 0.2 % extra).  int8 moves weak points, and what that
does to matching is for `evaluate` to say."""


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
    extra: share of the engine's keypoints, likewise, that have none of the reference's.
    points: keypoints of all samples, of the engine or the reference, whichever has fewer, as a share of the other's;
        left out where neither has any.
    """
    measured: list[dict[str, float]] = []
    counts = np.zeros((len(engines), 2), int)
    for sample in samples:
        expected = reference.run(**sample.inputs(reference.metadata))
        for engine, count in zip(engines, counts):
            figures, found = _compare(engine, sample, expected, reference.metadata, margin)
            measured.append(figures)
            count += found
    measured += [{"points": float(fewer / more)} for fewer, more in np.sort(counts) if more]
    names = dict.fromkeys(name for figures in measured for name in figures)
    return {name: (min if name in LEAST else max)(figures[name] for figures in measured if name in figures)
            for name in names}


def _compare(
    engine: Engine, sample: Sample, expected: Outputs, reference: ModelMetadata, margin: float
) -> tuple[dict[str, float], tuple[int, int]]:
    """Figures of one sample but points, and how many keypoints the reference and the engine find."""
    metadata, inputs = engine.metadata, sample.inputs(engine.metadata)
    outputs = engine.run(**inputs)
    if sample.points:
        outputs = {name: values[:, : sample.count] for name, values in outputs.items()}
    figures = _differences(outputs, expected) if metadata.profile == "dense" or sample.points else {}
    if not all(map(isfinite, figures.values())):
        return figures, (0, 0)
    if sample.points:
        both = expected["point_descriptors"][0] * outputs["point_descriptors"][0]
        return figures | {"cosine": float(np.median(both.sum(axis=1)))}, (0, 0)
    view, top_k = View(*inputs["image"].shape[2:]), metadata.top_k or TOP_K
    decoder, parameters = find_decoder(metadata, {})
    wanted = decode(expected, reference, view, top_k)
    if metadata.profile == "dense":
        found = decode(outputs, metadata, view, top_k)
    else:
        found = read_sparse(outputs, metadata, parameters, view, top_k)
    figures |= _agreement(wanted, found, top_k, parameters.threshold, margin)
    if len(found):
        descriptors = decoder.describe(expected, reference, parameters, found.keypoints)
        figures["cosine"] = float(np.median((descriptors * found.descriptors).sum(axis=1)))
    return figures, (len(wanted), len(found))


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


def _agreement(wanted: Features, found: Features, top_k: int, threshold: float, margin: float) -> dict[str, float]:
    """scores, within_pixel and extra of keypoints above `threshold`, at most `top_k`."""
    common = min(len(wanted), len(found))  # a score at the threshold may be on either side of it
    apart = np.abs(wanted.scores[:common] - found.scores[:common]).max(initial=0)
    largest = max(features.scores.max(initial=1e-12) for features in (wanted, found))
    figures = {"scores": float(apart / largest)}
    near = np.linalg.norm(wanted.keypoints[:, None] - found.keypoints, axis=2) <= 1
    for name, these, others, alone in (("within_pixel", wanted, found, ~near.any(axis=1)),
                                       ("extra", found, wanted, ~near.any(axis=0))):
        end = others.scores[-1] if len(others) >= top_k else threshold
        clear = these.scores > end + margin * largest
        if clear.sum() >= FEWEST:
            share = float(alone[clear].mean())
            figures[name] = share if name == "extra" else 1 - share
    return figures
