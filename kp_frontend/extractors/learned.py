"""A network's features: engine + decoder, or the network's descriptors at Shi-Tomasi corners."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from kp_frontend.decoding import View, find_decoder, find_peaks, fit_peaks
from kp_frontend.engines import Engine, open_engine
from kp_frontend.errors import InputError
from kp_frontend.extractors.base import check_image
from kp_frontend.extractors.options import Options
from kp_frontend.features import Features
from kp_frontend.images import to_gray
from kp_frontend.model_file import ModelMetadata


@dataclass(frozen=True)
class LearnedOptions(Options):
    """detector: who finds the points; the network always describes them.

    nms_radius (pixels), border (pixels), threshold (score): instead of the model's own; for ``network``.
    corner_radius, corner_block (pixels), corner_quality (share of the strongest corner): for ``gftt``. The block of 3
        finds corners more exactly than the usual 5 (graf: 1.1 px against 1.3).
    threads: of a CPU backend, 0 = one a core.
    """

    detector: Literal["network", "gftt"] = "network"
    nms_radius: int | None = None
    border: int | None = None
    threshold: float | None = None
    corner_radius: int = 3
    corner_block: int = 3
    corner_quality: float = 1e-3
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.nms_radius or 0, self.border or 0, self.corner_radius, self.threads)
        if min(sizes) < 0 or self.corner_block < 1 or not 0 <= self.corner_quality < 1:
            raise InputError(f"expected sizes and threads ≥ 0, corner_block ≥ 1, corner_quality in [0, 1): {self}")


class LearnedExtractor:
    """A network behind an engine as an Extractor.

    engine: may be shared; its `backend` and `metadata` tell what runs.
    """

    def __init__(self, name: str, engine: Engine, options: LearnedOptions) -> None:
        metadata = engine.metadata
        if metadata.profile != "dense":
            raise InputError(f"{name}: profile {metadata.profile!r} is not read yet; export with the dense profile")
        overrides = {key: getattr(options, key) for key in ("nms_radius", "border", "threshold")}
        self._decoder, self._parameters = find_decoder(metadata, overrides)
        missing = set(self._decoder.outputs) - set(engine.outputs)
        if missing:
            raise InputError(f"{name}: the model lacks the outputs {sorted(missing)} of decoder {metadata.decoder!r}")
        self.name, self.metric, self.descriptor_size = name, metadata.metric, metadata.descriptor_size
        self.engine, self.options = engine, options

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """See `Extractor.extract`."""
        check_image(image, mask)
        if image.min() == image.max():  # zero padding inside a network makes corners where there is nothing
            return Features.empty(self.descriptor_size, self.metric)
        outputs = self.engine.run(network_input(image, self.engine.metadata))
        view = View(image.shape[0], image.shape[1], mask)
        keypoints, scores = DETECTORS[self.options.detector](self, outputs, image, view)
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


DETECTORS = {"network": LearnedExtractor.network_points, "gftt": LearnedExtractor.corners}


def network_input(image: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """`image` as a network wants it: 1×C×H×W float32 in [0, 1], padded right and below by the edge's pixels.

    image: H×W or H×W×3 BGR uint8.  Raises InputError where the model takes one size only, and not this one.
    """
    height, width = image.shape[:2]
    down, right = (-height % metadata.size_multiple, -width % metadata.size_multiple)
    if metadata.height and (height + down, width + right) != (metadata.height, metadata.width):
        raise InputError(
            f"image is {width}×{height}, but the model was exported for {metadata.width}×{metadata.height} only; "
            "resize the images or export it with dynamic size"
        )
    if metadata.color == "gray":
        planes = [to_gray(image)]
    else:
        planes = [image] * 3 if image.ndim == 2 else list(cv2.split(image)[::-1])
    blob = np.empty((1, len(planes), height + down, width + right), np.float32)
    for plane, channel in zip(planes, blob[0]):
        if down or right:
            plane = cv2.copyMakeBorder(plane, 0, down, 0, right, cv2.BORDER_REPLICATE)
        np.multiply(plane, np.float32(1 / 255), out=channel)
    return blob


def load(name: str, path: Path, options: LearnedOptions) -> LearnedExtractor:
    """The extractor of the model file `path`; `name` is what it is called in tables."""
    return LearnedExtractor(name, open_engine(path, options.backend, options.threads), options)
