"""Pairs of views with the points that a classical detector finds in each, and which of them are the same point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kp_frontend.decoding import PointsParameters
from kp_frontend.extractors.residual import find_detector
from kp_frontend.features import Features
from kp_training.data.pairs import HomographyPairs
from kp_training.geometry.homography import warp_points

_TIE = 1e-3


class DescribedBatch(NamedTuple):
    """B pairs of views with N rows of points each; rows beyond those that were found are 0 and not valid.

    image0, image1: B×3×H×W uint8 RGB.  keypoints: B×N×2 float32 pixels.  descriptors: B×N×d float32 of unit length.
    valid: B×N bool.  partners: B×N int64, row of the same point in the other view, −1 = none.
    """

    image0: Tensor
    image1: Tensor
    keypoints0: Tensor
    keypoints1: Tensor
    descriptors0: Tensor
    descriptors1: Tensor
    valid0: Tensor
    valid1: Tensor
    partners0: Tensor
    partners1: Tensor


class DescribedPairs(Dataset):
    """The views of `pairs` with the `count` best points of each, found as the runtime finds them.

    pairs: RGB, made in the loader, since the detector runs there.  detector: which, and how.
    radius: pixels, in either view, between the two sightings of a point.
    """

    def __init__(self, pairs: HomographyPairs, detector: PointsParameters, count: int, radius: float) -> None:
        self.pairs, self.detector, self.count, self.radius = pairs, detector, count, radius

    def __getitem__(self, number: int) -> DescribedBatch:
        pair = self.pairs[number]
        # Made anew for each pair: OpenCV's objects do not go to other processes.
        extractor = find_detector("residual", self.detector, self.count)
        views = ((pair.image0, pair.mask0), (pair.image1, pair.mask1))
        # SIFT may give more than asked for where the last ones are equally strong.
        found = [extractor.extract(_to_bgr(image), mask.numpy().astype(np.uint8)).top_k(self.count)
                 for image, mask in views]
        partners = mutual_partners(found[0], found[1], pair.homography.numpy().astype(np.float64), self.radius)
        keypoints, descriptors = ([self._padded(getattr(side, name)) for side in found]
                                  for name in ("keypoints", "descriptors"))
        valid = [torch.arange(self.count) < len(side) for side in found]
        rows = [self._padded(own, fill=-1) for own in partners]
        return DescribedBatch(pair.image0, pair.image1, *keypoints, *descriptors, *valid, *rows)

    def _padded(self, values: np.ndarray, fill: int = 0) -> Tensor:
        padded = np.full((self.count, *values.shape[1:]), fill, values.dtype)
        padded[: len(values)] = values
        return torch.from_numpy(padded)


def mutual_partners(
    side0: Features, side1: Features, homography: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Row of each point's partner in the other view, int64, −1 = none: N0 and N1.

    homography: 3×3 view1_from_view0.  Partners are each other's nearest, and at most `radius` pixels apart in both
    views.  A place with several orientations has several points; of those, the likest descriptors are partners.
    """
    partners0, partners1 = np.full(len(side0), -1), np.full(len(side1), -1)
    if not len(side0) or not len(side1):
        return partners0, partners1
    in_view1 = warp_points(homography, side0.keypoints)[:, None] - side1.keypoints
    in_view0 = warp_points(np.linalg.inv(homography), side1.keypoints)[:, None] - side0.keypoints
    apart = np.maximum(np.linalg.norm(in_view1, axis=-1), np.linalg.norm(in_view0, axis=-1).T)
    apart = np.nan_to_num(apart, nan=np.inf, posinf=np.inf)
    cost = apart - _TIE * side0.descriptors @ side1.descriptors.T
    best0, best1 = cost.argmin(1), cost.argmin(0)
    rows = np.arange(len(side0))
    kept = rows[(best1[best0] == rows) & (apart[rows, best0] <= radius)]
    partners0[kept], partners1[best0[kept]] = best0[kept], kept
    return partners0, partners1


def _to_bgr(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.numpy()[::-1].transpose(1, 2, 0))
