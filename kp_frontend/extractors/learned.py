"""A network's features: engine + decoder, a graph that decodes itself, or descriptors at another detector's points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kp_frontend.decoding import Outputs, View, find_decoder, find_peaks, fit_peaks
from kp_frontend.engines import Engine, open_engine
from kp_frontend.errors import InputError
from kp_frontend.extractors.base import Extractor, check_image
from kp_frontend.extractors.network_input import network_input
from kp_frontend.extractors.options import EngineOptions, Options
from kp_frontend.extractors.residual import ResidualExtractor, ResidualOptions
from kp_frontend.features import Features
from kp_frontend.images import to_gray
from kp_frontend.settings import read_settings
from kp_frontend.sparse import check_outputs, read_sparse, warn_of_fewer


@dataclass(frozen=True)
class LearnedOptions(EngineOptions):
    """detector: who finds the points; the network always describes them.  ``network`` itself, ``gftt`` (Shi-Tomasi
        corners), or any other extractor's name: ``orb``, another model (as in the swaps of PoSFeat's table).

    nms_radius (pixels), border (pixels), threshold (score): instead of the model's own; for ``network``.
    corner_radius, corner_block (pixels), corner_quality (share of the strongest corner): for ``gftt``. The block of 3
        finds corners more exactly than the usual 5 (graf: 1.1 px against 1.3).
    """

    detector: str = "network"
    nms_radius: int | None = None
    border: int | None = None
    threshold: float | None = None
    corner_radius: int = 3
    corner_block: int = 3
    corner_quality: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.nms_radius or 0, self.border or 0, self.corner_radius)
        if min(sizes) < 0 or self.corner_block < 1 or not 0 <= self.corner_quality < 1:
            raise InputError(f"expected sizes ≥ 0, corner_block ≥ 1, corner_quality in [0, 1): {self}")


class _NetworkExtractor(ABC):
    """A network behind an engine as an Extractor; what its outputs say is for `read`.

    engine: may be shared; its `backend` and `metadata` tell what runs.
    """

    def __init__(self, name: str, engine: Engine, options: LearnedOptions) -> None:
        metadata = engine.metadata
        self.name, self.metric, self.descriptor_size = name, metadata.metric, metadata.descriptor_size
        self.engine, self.options = engine, options

    @property
    def concurrent(self) -> bool:
        """As the engine."""
        return self.engine.concurrent

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """See `Extractor.extract`."""
        check_image(image, mask)
        if image.min() == image.max():  # zero padding inside a network makes corners where there is nothing
            return Features.empty(self.descriptor_size, self.metric)
        outputs = self.engine.run(network_input(image, self.engine.metadata))
        return self.read(outputs, image, View(image.shape[0], image.shape[1], mask))

    @abstractmethod
    def read(self, outputs: Outputs, image: np.ndarray, view: View) -> Features:
        """Features, copied, in what the network made of `image`."""


class LearnedExtractor(_NetworkExtractor):
    """A network whose maps are decoded here.

    other: who finds the points, where the option ``detector`` names another extractor.
    """

    def __init__(self, name: str, engine: Engine, options: LearnedOptions, other: Extractor | None = None) -> None:
        super().__init__(name, engine, options)
        overrides = {key: getattr(options, key) for key in ("nms_radius", "border", "threshold")}
        self._decoder, self._parameters = find_decoder(engine.metadata, overrides)
        self._other = other

    @property
    def concurrent(self) -> bool:
        """As the engine, and the other extractor if there is one."""
        return super().concurrent and (self._other is None or self._other.concurrent)

    def read(self, outputs: Outputs, image: np.ndarray, view: View) -> Features:
        """Points as the option ``detector`` says, and the network's descriptors at them."""
        find = DETECTORS.get(self.options.detector, LearnedExtractor.points_of_other)
        keypoints, scores = find(self, outputs, image, view)
        descriptors = self._decoder.describe(outputs, self.engine.metadata, self._parameters, keypoints)
        return Features(keypoints, scores, descriptors, self.metric)

    def network_points(self, outputs: Any, image: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
        """The network's own keypoints and scores."""
        return self._decoder.detect(outputs, self._parameters, view, self.options.top_k)

    def corners(self, outputs: Any, image: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Shi-Tomasi corners (CVPR 1994) and their strength: the ones that optical flow follows best."""
        options = self.options
        strength = cv2.cornerMinEigenVal(to_gray(image), options.corner_block)
        least = options.corner_quality * float(strength.max())
        peaks, scores = find_peaks(
            strength, options.top_k, radius=options.corner_radius, border=1, threshold=least, mask=view.mask
        )
        return fit_peaks(strength, peaks), scores

    def points_of_other(self, outputs: Any, image: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints and scores of another extractor."""
        if self._other is None:
            raise InputError(f"{self.name}: detector={self.options.detector} names an extractor that was not given")
        found = self._other.extract(image, view.mask)
        return found.keypoints, found.scores


DETECTORS = {"network": LearnedExtractor.network_points, "gftt": LearnedExtractor.corners}


class SparseExtractor(_NetworkExtractor):
    """A network whose graph decodes by itself."""

    def __init__(self, name: str, engine: Engine, options: LearnedOptions, other: Extractor | None = None) -> None:
        super().__init__(name, engine, options)
        metadata = engine.metadata
        _, parameters = find_decoder(metadata, {})
        _check_fixed(name, options, parameters)
        _, self._parameters = find_decoder(metadata, {"threshold": options.threshold})
        warn_of_fewer(name, metadata, options.top_k)

    def read(self, outputs: Outputs, image: np.ndarray, view: View) -> Features:
        """What the graph found, but for what lies outside the view."""
        return read_sparse(outputs, self.engine.metadata, self._parameters, view, self.options.top_k)


def _check_fixed(name: str, options: LearnedOptions, parameters: Any) -> None:
    """InputError for an option that the graph of a sparse file has settled already."""
    given = [key for key in ("nms_radius", "border") if getattr(options, key) is not None]
    if given or options.detector != "network":
        raise InputError(f"{name}: {given[0] if given else 'detector'} is settled in this sparse model file; leave it "
                         "out, or export the dense profile")
    if options.threshold is not None and options.threshold < parameters.threshold:
        raise InputError(f"{name}: threshold={options.threshold:g} is below {parameters.threshold:g}, where this "
                         "sparse model file cuts; give more, or export the dense profile")


# Profile, or decoder of the models that need an extractor of their own → its options and the extractor.
EXTRACTORS: dict[str, tuple[type[Options], Callable[..., Extractor]]] = {
    "dense": (LearnedOptions, LearnedExtractor),
    "sparse": (LearnedOptions, SparseExtractor),
    "points": (ResidualOptions, ResidualExtractor),
}


def from_engine(name: str, engine: Engine, values: Mapping[str, Any], *other: Extractor) -> Extractor:
    """The extractor that the decoder of the engine's model asks for.

    name: what it is called in tables.  values: its options, as texts or Python values.  other: see LearnedExtractor.
    Raises InputError for an unknown option or value, and for a model that it cannot use.
    """
    metadata = engine.metadata
    check_outputs(name, metadata, engine.outputs)
    options, extractor = EXTRACTORS.get(metadata.decoder, EXTRACTORS[metadata.profile])
    return extractor(name, engine, read_settings(name, options, values), *other)


def load(name: str, path: Path, values: Mapping[str, Any], *other: Extractor) -> Extractor:
    """The extractor of the model file `path`; see `from_engine`."""
    needed = {key: values[key] for key in ("backend", "threads") if key in values}
    options = read_settings(name, EngineOptions, needed)
    return from_engine(name, open_engine(path, options.backend, options.threads), values, *other)
