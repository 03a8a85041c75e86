"""A classical detector's points, described again by a network that sees more of the image.

"Residual learning for image point descriptors" (METHODS.md section 6): SIFT or SURF finds the points in OpenCV; the
network takes the image, the points and their descriptors and gives one descriptor a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_frontend.decoding import PointsParameters, find_decoder
from kp_frontend.engines import Engine
from kp_frontend.errors import unknown_name
from kp_frontend.extractors.base import Extractor
from kp_frontend.extractors.classical import EXTRACTORS
from kp_frontend.extractors.network_input import network_input
from kp_frontend.extractors.options import EngineOptions
from kp_frontend.features import Features
from kp_frontend.settings import read_settings
from kp_frontend.sparse import pad_points, warn_of_fewer

DETECTORS = ("sift", "rootsift", "surf")


@dataclass(frozen=True)
class ResidualOptions(EngineOptions):
    """contrast: the detector's threshold, None = the model's own."""

    contrast: float | None = None


class ResidualExtractor:
    """A detector and a network as an Extractor; scores, sizes and angles are the detector's."""

    def __init__(self, name: str, engine: Engine, options: ResidualOptions) -> None:
        metadata = engine.metadata
        decoder, parameters = find_decoder(metadata, {"contrast": options.contrast})
        warn_of_fewer(name, metadata, options.top_k)
        self.name, self.metric, self.descriptor_size = name, metadata.metric, metadata.descriptor_size
        self.engine, self.options = engine, options
        self._decoder, self._parameters = decoder, parameters
        self._detector = find_detector(name, parameters, min(options.top_k, metadata.top_k or options.top_k))

    @property
    def concurrent(self) -> bool:
        """As the engine and the detector."""
        return self.engine.concurrent and self._detector.concurrent

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """See `Extractor.extract`."""
        found = self._detector.extract(image, mask)
        if not len(found):
            return Features.empty(self.descriptor_size, self.metric)
        metadata, points = self.engine.metadata, point_inputs(found, self._parameters)
        if metadata.top_k:
            points = pad_points(points, metadata.top_k)
        outputs = self.engine.run(network_input(image, metadata), **points)
        descriptors = self._decoder.describe(outputs, metadata, self._parameters, found.keypoints)[: len(found)]
        return Features(found.keypoints, found.scores, descriptors, self.metric, found.sizes, found.angles)


def find_detector(owner: str, parameters: PointsParameters, top_k: int) -> Extractor:
    """The classical extractor that `parameters` describe; `owner` is whom errors name."""
    if parameters.detector not in DETECTORS:
        raise unknown_name(f"detector of {owner}", parameters.detector, DETECTORS)
    options, build = EXTRACTORS[parameters.detector]
    values: dict[str, Any] = {"top_k": top_k, "upright": parameters.upright}
    if parameters.contrast is not None:
        values["contrast"] = parameters.contrast
    return build(parameters.detector, read_settings(owner, options, values))


def point_inputs(found: Features, parameters: PointsParameters) -> dict[str, np.ndarray]:
    """What the network takes beside the image, by name; `found` has at least one point."""
    values = {"keypoints": found.keypoints[None], "descriptors": found.descriptors[None]}
    return {name: values[name] for name in parameters.inputs}
