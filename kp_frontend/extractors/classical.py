"""ORB, SIFT, RootSIFT and SURF through OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.extractors.base import check_image
from kp_frontend.extractors.options import Options
from kp_frontend.features import Features
from kp_frontend.images import to_gray
from kp_frontend.per_thread import PerThread

_SMALLEST = 8  # pixels a side: below, OpenCV's pyramids raise or find nothing


@dataclass(frozen=True)
class OrbOptions(Options):
    """levels: of the pyramid.  scale: between two levels.  fast_threshold: grey levels between corner and circle."""

    levels: int = 8
    scale: float = 1.2
    fast_threshold: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= 32 or not 1 < self.scale <= 4 or not 1 <= self.fast_threshold <= 254:
            raise InputError("orb: expected levels in 1 … 32, scale above 1 and at most 4, fast_threshold in 1 … 254, "
                             f"got {self}")


@dataclass(frozen=True)
class SiftOptions(Options):
    """contrast, edge: OpenCV's thresholds.

    dedupe: one feature a location; SIFT otherwise gives one for each dominant orientation, which fills top_k
    with repeated points and flatters repeatability.
    upright: every orientation is 0, and so one feature a location: for cameras that never roll.
    """

    contrast: float = 0.04
    edge: float = 10.0
    dedupe: bool = False
    upright: bool = False


@dataclass(frozen=True)
class SurfOptions(Options):
    """contrast: OpenCV's hessianThreshold.  extended: 128 numbers a descriptor, else 64.  upright: no orientation."""

    contrast: float = 100.0
    extended: bool = True
    upright: bool = False


class ClassicalExtractor:
    """A cv2.Feature2D as an Extractor, one for each thread.

    make: makes it.  finish: what its descriptors become.
    choose: which of the points that are found, strongest first, are described; None = all.
    """

    concurrent = True

    def __init__(
        self, name: str, make: Callable[[], cv2.Feature2D], options: Options, *, metric: str,
        finish: Callable[[np.ndarray], np.ndarray], choose: Callable[[Sequence], list] | None = None,
    ) -> None:
        self.name = name
        self.metric = metric
        self._detectors: PerThread[cv2.Feature2D] = PerThread(make)
        self.descriptor_size = int(self._detectors.get().descriptorSize())
        self._top_k, self._finish, self._choose = options.top_k, finish, choose

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """See `Extractor.extract`."""
        check_image(image, mask)
        if min(image.shape[:2]) < _SMALLEST:
            return Features.empty(self.descriptor_size, self.metric)
        found, descriptors = self._detect(to_gray(image), mask)
        if not found:
            return Features.empty(self.descriptor_size, self.metric)
        count = len(found)
        return Features(
            cv2.KeyPoint_convert(found).astype(np.float32, copy=False),
            np.fromiter((point.response for point in found), np.float32, count),
            self._finish(descriptors),
            self.metric,
            np.fromiter((point.size for point in found), np.float32, count),
            np.fromiter((point.angle for point in found), np.float32, count) % np.float32(360),
        ).top_k(self._top_k)

    def _detect(self, gray: np.ndarray, mask: np.ndarray | None) -> tuple[Sequence, np.ndarray]:
        """OpenCV's keypoints and descriptors; InputError where it fails, as on a level of less than a pixel."""
        detector = self._detectors.get()
        try:
            if self._choose is None:
                return detector.detectAndCompute(gray, mask)
            return detector.compute(gray, self._choose(detector.detect(gray, mask))[: self._top_k])
        except cv2.error as error:
            size = f"{gray.shape[1]}×{gray.shape[0]}"
            raise InputError(f"{self.name}: OpenCV cannot search an image of {size} with these options ({error.err}); "
                             "give others, as fewer levels, or a larger image") from None


def _one_per_location(found: Sequence) -> list:
    """The strongest point of each location, strongest first."""
    ordered = sorted(found, key=lambda point: -point.response)
    return list({(point.pt, point.size): point for point in reversed(ordered)}.values())[::-1]


def _upright(found: Sequence) -> list:
    """One point a location with orientation 0, strongest first."""
    kept = _one_per_location(found)
    for point in kept:
        point.angle = 0.0
    return kept


def _unit(descriptors: np.ndarray) -> np.ndarray:
    return descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), np.float32(1e-12))


def _root(descriptors: np.ndarray) -> np.ndarray:
    """Hellinger kernel: L1 norm, then square root (Arandjelović and Zisserman, CVPR 2012)."""
    return np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), np.float32(1e-12)))


def orb(name: str, options: OrbOptions) -> ClassicalExtractor:
    """ORB (Rublee et al., ICCV 2011): FAST corners by Harris response, 256 rotated binary tests."""
    make = partial(cv2.ORB_create, nfeatures=options.top_k, nlevels=options.levels, scaleFactor=options.scale,
                   fastThreshold=options.fast_threshold)
    return ClassicalExtractor(name, make, options, metric="hamming", finish=lambda descriptors: descriptors)


def sift(name: str, options: SiftOptions) -> ClassicalExtractor:
    """SIFT (Lowe, IJCV 2004), descriptors of unit L2 length."""
    return _sift(name, options, _unit)


def rootsift(name: str, options: SiftOptions) -> ClassicalExtractor:
    """SIFT's points with RootSIFT descriptors."""
    return _sift(name, options, _root)


def surf(name: str, options: SurfOptions) -> ClassicalExtractor:
    """SURF (Bay et al., ECCV 2006); InputError where OpenCV was built without it, as all wheels of PyPI are."""
    try:
        make = partial(cv2.xfeatures2d.SURF_create, hessianThreshold=options.contrast, extended=options.extended,
                       upright=options.upright)
        return ClassicalExtractor(name, make, options, metric="l2", finish=_unit)
    except (AttributeError, cv2.error):
        raise InputError(
            f"{name}: OpenCV {cv2.__version__} was built without SURF; build it with opencv_contrib and "
            "-D OPENCV_ENABLE_NONFREE=ON, or use sift"
        ) from None


def _sift(name: str, options: SiftOptions, finish: Callable[[np.ndarray], np.ndarray]) -> ClassicalExtractor:
    choose = _upright if options.upright else _one_per_location if options.dedupe else None
    make = partial(cv2.SIFT_create, nfeatures=0 if choose else options.top_k, contrastThreshold=options.contrast,
                   edgeThreshold=options.edge)
    return ClassicalExtractor(name, make, options, metric="l2", finish=finish, choose=choose)


EXTRACTORS: dict[str, tuple[type[Options], Callable[..., ClassicalExtractor]]] = {
    "orb": (OrbOptions, orb),
    "sift": (SiftOptions, sift),
    "rootsift": (SiftOptions, rootsift),
    "surf": (SurfOptions, surf),
}
