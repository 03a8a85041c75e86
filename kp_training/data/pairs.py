"""Two views of one photograph with the homography between them: the n-th pair is a function of (seed, n)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kp_frontend.errors import unknown_name
from kp_training.augment import apply_style
from kp_training.data.corners import averaged_corners, draw_labels
from kp_training.geometry.homography import (
    PaperHomographies,
    WideHomographies,
    homography_from_corners,
    view_corners,
    warp_points,
)


class Images(Protocol):
    """Where photographs come from: H×W×3 BGR uint8 by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


class PairBatch(NamedTuple):
    """B pairs of views, 0 and 1.

    image0, image1: B×C×H×W uint8 (grey, or RGB).  homography: B×3×3 float32, view1_from_view0 in pixels.
    mask0, mask1: B×H×W bool, True where the view shows the photograph and not its mirrored border.
    labels0, labels1: B×H×W uint8, strength of the corner at that pixel (``data.corners``), 0 = none.
    """

    image0: Tensor
    image1: Tensor
    homography: Tensor
    mask0: Tensor
    mask1: Tensor
    labels0: Tensor
    labels1: Tensor


@dataclass(frozen=True)
class PairConfig:
    """How pairs are made.

    geometry: ``paper`` (KP2D's) or ``wide``.  style: photometric style of ``augment``.  color: ``gray`` or ``rgb``.
    height, width: of the views in pixels.  turn_share: share of wide pairs turned by anything up to ±180°.
    zoom, stretch, hardness: of wide pairs, see WideHomographies.  corners: whether corner labels are made.
    """

    geometry: str = "wide"
    style: str = "camera"
    color: str = "gray"
    height: int = 192
    width: int = 192
    turn_share: float = 0.5
    zoom: float = 1.0
    stretch: float = 1.0
    hardness: float = 1.0
    corners: bool = True


class HomographyPairs(Dataset):
    """Endless pairs of views; item n depends on `images`, `config`, `seed` and n alone."""

    def __init__(self, images: Images, config: PairConfig, seed: int) -> None:
        if config.geometry not in GEOMETRIES:
            raise unknown_name("pair geometry", config.geometry, GEOMETRIES)
        self.images, self.config, self.seed = images, config, seed
        self._corners: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> PairBatch:
        config = self.config
        epoch, position = divmod(number, len(self.images))
        index = int(np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.images))[position])
        rng = np.random.default_rng([self.seed, 2, number])
        photo = self.images[index]
        if config.color == "gray":
            photo = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
        elif config.style.startswith("paper"):
            photo = _mix_channels(photo, rng)
        photo_from_views = GEOMETRIES[config.geometry](photo.shape[:2], config, rng)
        views = [_warp(photo, photo_from_view, config) for photo_from_view in photo_from_views]
        images = [_to_tensor(apply_style(image, config.style, rng)) for image, _ in views]
        masks = [torch.from_numpy(mask) for _, mask in views]
        labels = [self._labels(index, photo, photo_from_view) for photo_from_view in photo_from_views]
        homography = np.linalg.inv(photo_from_views[1]) @ photo_from_views[0]
        return PairBatch(*images, torch.from_numpy((homography / homography[2, 2]).astype(np.float32)), *masks, *labels)

    def _labels(self, index: int, photo: np.ndarray, photo_from_view: np.ndarray) -> Tensor:
        height, width = self.config.height, self.config.width
        if not self.config.corners:
            return torch.zeros((height, width), dtype=torch.uint8)
        if index not in self._corners:
            grey = photo if photo.ndim == 2 else cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
            self._corners[index] = averaged_corners(grey, np.random.default_rng([self.seed, 3, index]))
        x, y, strengths = self._corners[index].T
        points = warp_points(np.linalg.inv(photo_from_view), np.column_stack([x, y]))
        return torch.from_numpy(draw_labels(points, strengths, height, width))


class EndlessSampler(Sampler):
    """0, 1, 2 … from `start`: training that goes on after a stop sees the pairs that it would have seen."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while True:
            yield number
            number += 1


def _wide_views(photo_size: tuple[int, int], config: PairConfig, rng: np.random.Generator) -> Sequence[np.ndarray]:
    """photo_from_view of both views: the first an upright crop, the second as ``WideHomographies`` moves it."""
    size = np.array(photo_size[::-1], float)
    view = np.array([config.width, config.height], float)
    corners = view_corners(config.height, config.width)
    zoom = min(2.0 ** rng.uniform(-0.7, 0.7), (size / view).min())
    centre = rng.uniform(zoom * view / 2, size - zoom * view / 2) - 0.5
    flip = [rng.choice([-1.0, 1.0]), 1.0]
    wide = WideHomographies(config.zoom, config.stretch, turn_share=config.turn_share, hardness=config.hardness)
    moved = wide.sample(rng) * view / 2
    first = homography_from_corners(corners, (corners - corners.mean(0)) * zoom * flip + centre)
    second = homography_from_corners(corners, moved * zoom * flip + centre)
    return (first, second) if rng.uniform() < 0.5 else (second, first)


def _paper_views(photo_size: tuple[int, int], config: PairConfig, rng: np.random.Generator) -> Sequence[np.ndarray]:
    """photo_from_view of KP2D's source and target; the target is the whole photograph, stretched to the view's size.

    The code's base augmentation (flips, ±15°, shift 0.1, scale 0.9 to 1.1) is applied to the target.
    """
    half = np.array([config.width, config.height]) / 2
    corners = view_corners(config.height, config.width)
    centre = corners.mean(0)
    unit = (corners - centre) / half
    angle = rng.uniform(-np.pi / 12, np.pi / 12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn * rng.uniform(0.9, 1.1) * rng.choice([-1.0, 1.0], 2)
    base = homography_from_corners(corners, (unit * half) @ linear.T + centre + rng.uniform(-0.1, 0.1, 2) * 2 * half)
    photo_from_target = homography_from_corners(corners, view_corners(*photo_size)) @ base
    target_from_source = homography_from_corners(corners, PaperHomographies().sample(rng) * half + centre)
    return photo_from_target @ target_from_source, photo_from_target


GEOMETRIES = {"wide": _wide_views, "paper": _paper_views}


def _warp(photo: np.ndarray, photo_from_view: np.ndarray, config: PairConfig) -> tuple[np.ndarray, np.ndarray]:
    """The view and where it shows the photograph; sampled from a halved photograph where the view shrinks it."""
    size = (config.width, config.height)
    middle = warp_points(photo_from_view, view_corners(config.height, config.width).mean(0) + np.eye(2))
    origin = warp_points(photo_from_view, view_corners(config.height, config.width).mean(0)[None])
    shrink = np.sqrt(abs(np.linalg.det(middle - origin)))
    mask = cv2.warpPerspective(np.ones(photo.shape[:2], np.uint8), photo_from_view, size,
                               flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    for _ in range(int(np.clip(np.log2(max(shrink, 1e-6)) + 0.4, 0, 3))):
        photo = cv2.pyrDown(photo)  # its pixel i is centred on pixel 2·i
        photo_from_view = np.diag([0.5, 0.5, 1.0]) @ photo_from_view
    view = cv2.warpPerspective(photo, photo_from_view, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REFLECT_101)
    return view, mask.astype(bool)


def _mix_channels(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """KP2D: both views share a shuffled channel order (p 0.5) and being grey (p 0.5)."""
    if rng.uniform() < 0.5:
        photo = np.ascontiguousarray(photo[..., rng.permutation(3)])
    if rng.uniform() < 0.5:
        photo = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return photo


def _to_tensor(image: np.ndarray) -> Tensor:
    channels = image[None] if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(channels)
