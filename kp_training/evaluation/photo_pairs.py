"""Pairs made from photographs that training never sees: warps and light under a fixed seed, by the hundred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_training.augment import apply_style
from kp_training.data.photos import PhotoFolder
from kp_training.evaluation.sequences import HomographyPair, Loading
from kp_training.geometry.homography import WideHomographies, homography_from_corners, view_corners, warp_points

LEAST_PHOTOS = 4


@dataclass(frozen=True)
class Change:
    """What changes between the two images of a group: the camera's place, and the photometric style of both."""

    warp: WideHomographies
    style: str = "off"


_STILL = WideHomographies(zoom=0.05, stretch=0.05, perspective=0.02, shift=0.05, rotation=0.05, turn_share=0)
GROUPS = {
    # Not quite still: an identity would flatter detectors that are tied to a grid of cells.
    "light": Change(_STILL, "camera"),
    "view": Change(WideHomographies(zoom=0.2, stretch=0.8, perspective=0.3, shift=0.2, rotation=0.3, turn_share=0)),
    "view_hard": Change(
        WideHomographies(zoom=0.4, stretch=1.5, perspective=0.5, shift=0.3, rotation=0.6, turn_share=0, hardness=4)
    ),
    "zoom": Change(WideHomographies(zoom=2.0, stretch=0.1, perspective=0.05, shift=0.1, rotation=0.1, turn_share=0)),
    "rotation": Change(WideHomographies(zoom=0.1, stretch=0.1, perspective=0.05, shift=0.05, turn_share=1)),
    "mixed": Change(WideHomographies(), "camera"),
}
"""Group → change; `WideHomographies` draws a difficulty for each pair."""


class PhotoPairs:
    """`count` pairs from the tenth of a folder's photographs that is kept from training.

    Pair n is a function of (photographs, seed, n): groups take turns, and so do photographs.
    Raises InputError for a folder without enough of them.
    """

    def __init__(self, folder: Path, count: int = 300, seed: int = 0) -> None:
        if count < 1:
            raise InputError(f"--pairs {count}: expected at least 1")
        self.photos, self.count, self.seed = PhotoFolder(folder, held_out=True), count, seed
        if len(self.photos) < LEAST_PHOTOS:
            raise InputError(
                f"photos:{folder} has {len(self.photos)} photographs in the tenth that is kept from training, "
                f"expected at least {LEAST_PHOTOS}; give a folder of 60 photographs or more"
            )
        self.order = np.random.default_rng([seed, 1]).permutation(len(self.photos))

    def __str__(self) -> str:
        photos = min(self.count, len(self.photos))
        return f"{self.count} pairs of {photos} photographs kept from training, seed {self.seed}"

    def units(self, left_out: frozenset[str]) -> dict[int, int]:
        """Number → 1 of each pair; nothing is left out, whatever `left_out` names."""
        return dict.fromkeys(range(self.count), 1)

    def pairs(self, number: int, loading: Loading) -> Iterator[HomographyPair]:
        """Pair `number`, rendered from the photograph at the size that the protocol wants."""
        group = list(GROUPS)[number % len(GROUPS)]
        index = int(self.order[number % len(self.photos)])
        photo, rng = self.photos[index], np.random.default_rng([self.seed, 2, number])
        size = loading.size.of(photo.shape)
        photo_from_views = _views(photo.shape, size, GROUPS[group].warp, rng)
        views = [render(photo, photo_from_view, size) for photo_from_view in photo_from_views]
        images = [apply_style(view, GROUPS[group].style, rng) for view in views]
        if loading.gray:
            images = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images]
        homography = np.linalg.inv(photo_from_views[1]) @ photo_from_views[0]
        source = self.photos.paths[index].name
        yield HomographyPair(group, str(number), *images, homography / homography[2, 2], source)


def _views(
    shape: tuple[int, ...], size: tuple[int, int], warp: WideHomographies, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """photo_from_view of both: the first is the largest central crop of the views' aspect, the second moves from it.

    The first view shows photograph only, so what the second one mirrors beyond the photograph is never shared.
    """
    height, width = shape[:2]
    corners = view_corners(size[1], size[0])
    zoom = min(width / size[0], height / size[1])
    centre = np.array([width - 1, height - 1]) / 2
    first = homography_from_corners(corners, (corners - corners.mean(0)) * zoom + centre)
    second = homography_from_corners(corners, warp.sample(rng) * size / 2 * zoom + centre)
    return first, second


def render(photo: np.ndarray, photo_from_view: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The view, sampled from a halved photograph where it shrinks it; mirrored beyond the photograph."""
    middle = (np.array(size) - 1) / 2
    steps = warp_points(photo_from_view, middle + np.array([[0, 0], [1, 0], [0, 1]]))
    shrink = np.sqrt(abs(np.linalg.det(steps[1:] - steps[0])))
    for _ in range(int(np.clip(np.log2(max(shrink, 1e-6)) + 0.5, 0, 3))):
        photo = cv2.pyrDown(photo)  # its pixel i is centred on pixel 2·i
        photo_from_view = np.diag([0.5, 0.5, 1.0]) @ photo_from_view
    return cv2.warpPerspective(
        photo, photo_from_view, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
    )
