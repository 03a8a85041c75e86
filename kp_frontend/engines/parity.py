"""Whether an engine finds what ONNX Runtime finds on the CPU: a fast engine that is wrong must not run unseen."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

import cv2
import numpy as np

from kp_frontend.decoding import Outputs, View, decode, further_inputs
from kp_frontend.model_file import ModelMetadata
from kp_frontend.sparse import model_outputs

Found = tuple[np.ndarray, np.ndarray]  # keypoints N×2 float32, pixels; descriptors N×D float32

_SIZE = (480, 640)  # of the image where nothing says another one
_POINTS = 500
_CLASSICAL = 128  # numbers of a SIFT or SURF descriptor
_SHAPES = 150
_TOP_K = 1000  # points of a dense model
_LOW = 0.1  # quantile of the cosines: wrong descriptors of a minority leave the median as it is


@dataclass(frozen=True)
class Agreement:
    """How far the features of an engine are those of ONNX Runtime on the CPU.

    keypoints: of ONNX Runtime.  within_pixel: share of them that the engine has within a pixel, too.
    extra: share of the engine's keypoints without one of ONNX Runtime's within a pixel; NaN where top_k cuts both:
        then who is left out is for within_pixel to say.
    offset: median distance of those within a pixel from the engine's, pixels.
    cosine, low_cosine: median and lowest tenth of the cosines of their descriptors; NaN where the engine gives values
        that are no numbers.
    """

    keypoints: int
    within_pixel: float
    extra: float
    offset: float
    cosine: float
    low_cosine: float

    @property
    def good(self) -> bool:
        """Whether the differences are those of arithmetic.

        Room for int8, which every library rounds in its own way (trained networks: 92 %, 0.05 px, 0.9992, and of
        the shipped one 14 % extra, lowest tenth 0.9995; untrained ones, with scores that are all alike, 78 %); none for
        another convention of resizing or sampling, which moves everything by up to half a pixel.
        """
        return (self.within_pixel >= 0.75 and not self.extra > 0.25 and self.offset <= 0.25 and self.cosine >= 0.98
                and self.low_cosine >= 0.95)

    def __str__(self) -> str:
        if isnan(self.cosine):
            return "values that are no numbers"
        if not self.keypoints:
            return "keypoints where it finds none" if self.extra else "no keypoints to compare"
        extra = "" if isnan(self.extra) else f"{100 * self.extra:.1f} % extra, "
        return (f"{100 * self.within_pixel:.1f} % of {self.keypoints} keypoints within 1 px, {extra}"
                f"{self.offset:.2f} px off, cosine {self.cosine:.4f} (lowest tenth {self.low_cosine:.4f})")


def sample_inputs(metadata: ModelMetadata, height: int = 0, width: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a model by name: a textured image, the same in every process, and points where it takes some.

    height, width: pixels, 0 = 480×640; a model of fixed size gets its own.
    """
    wanted = (metadata.height, metadata.width) if metadata.height else (height, width) if height and width else _SIZE
    size = metadata.padded(*wanted)
    image = np.repeat(_texture(*size)[None, None], metadata.channels, axis=1)
    inputs = {"image": image if metadata.input_dtype == "uint8" else image * np.float32(1 / 255)}
    further = further_inputs(metadata)
    if further:
        random = np.random.default_rng(0)
        count = metadata.top_k or _POINTS
        points = random.uniform(0, 1, (1, count, 2)) * (size[1] - 1, size[0] - 1)
        descriptors = np.abs(random.standard_normal((1, count, _CLASSICAL)))
        descriptors /= np.linalg.norm(descriptors, axis=2, keepdims=True)
        values = {"keypoints": points, "descriptors": descriptors}
        inputs |= {name: values[name].astype(np.float32) for name in further}
    return inputs


def _texture(height: int, width: int) -> np.ndarray:
    """H×W uint8: triangles of random greys on soft noise, so that there are corners of every contrast."""
    random = np.random.default_rng(0)
    noise = random.uniform(60, 200, (height // 32 + 2, width // 32 + 2)).astype(np.float32)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    corners = random.uniform(0, 1, (_SHAPES, 1, 2)) * (width, height) + random.uniform(-60, 60, (_SHAPES, 3, 2))
    for triangle, gray in zip(corners, random.uniform(0, 255, _SHAPES)):
        cv2.fillPoly(image, [np.rint(triangle).astype(np.int32)], gray)
    image += random.normal(0, 3, image.shape)
    return np.clip(cv2.GaussianBlur(image, (3, 3), 0), 0, 255).astype(np.uint8)


def found_in(outputs: Outputs, inputs: Outputs, metadata: ModelMetadata) -> Found:
    """Keypoints and descriptors, copied, in what an engine made of `inputs`."""
    if "keypoints" in inputs:
        return inputs["keypoints"][0], outputs["point_descriptors"][0].copy()
    if metadata.profile == "sparse":
        rows = outputs["scores"][0] > 0
        return outputs["keypoints"][0][rows], outputs["descriptors"][0][rows]
    features = decode(outputs, metadata, View(*inputs["image"].shape[2:]), _TOP_K)
    return features.keypoints, features.descriptors


def agreement_with(reference: Found, outputs: Outputs, inputs: Outputs, metadata: ModelMetadata) -> Agreement:
    """How far what an engine made of `inputs` is what the reference found."""
    if not all(np.isfinite(outputs[name]).all() for name in model_outputs(metadata)):
        return Agreement(len(reference[0]), 0.0, nan, nan, nan, nan)  # scores of NaN would pass for no keypoints
    return compare(reference, found_in(outputs, inputs, metadata), metadata.top_k or _TOP_K)


def compare(reference: Found, found: Found, top_k: int = 0) -> Agreement:
    """How far `found` is what the reference found; top_k: most points that either may have, 0 = any number."""
    (expected, their_descriptors), (points, descriptors) = reference, found
    if not len(expected) or not len(points):
        same = float(len(expected) == len(points))
        return Agreement(len(expected), same, float(len(points) > 0), 0.0, same, same)
    distances = np.linalg.norm(expected[:, None] - points[None], axis=2)
    nearest = distances.argmin(axis=1)
    offsets = distances[np.arange(len(expected)), nearest]
    near = offsets <= 1
    if not near.any():
        return Agreement(len(expected), 0.0, 1.0, 0.0, 0.0, 0.0)
    cosines = np.einsum("nd,nd->n", their_descriptors[near], descriptors[nearest[near]])
    extra = nan if len(expected) == len(points) == top_k else float((distances.min(axis=0) > 1).mean())
    return Agreement(len(expected), float(near.mean()), extra, float(np.median(offsets[near])),
                     float(np.median(cosines)), float(np.quantile(cosines, _LOW)))
