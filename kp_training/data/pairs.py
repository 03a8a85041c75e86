"""Two views of one photograph with the homography between them: the n-th pair is a function of (seed, n)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kp_frontend.errors import unknown_name
from kp_training.augment import apply_style
from kp_training.data.corners import draw_labels
from kp_training.data.images import Images
from kp_training.device_augment import light_images
from kp_training.geometry.homography import (
    Kp2dHomographies,
    SilkHomographies,
    SuperPointHomographies,
    WideHomographies,
    homography_from_corners,
    view_corners,
    warp_points,
)
from kp_training.geometry.views import Part, cut_part, to_channels, warp_parts, warp_view
from kp_training.geometry.warps import HomographyWarp


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

    def warp(self) -> HomographyWarp:
        """From view 0 to view 1."""
        return HomographyWarp(self.homography, self.mask0, self.mask1)


class PairParts(NamedTuple):
    """B pairs before ``HomographyPairs.finish``: what each view needs of its photograph; the rest as in PairBatch."""

    part0: Part
    part1: Part
    homography: Tensor
    labels0: Tensor
    labels1: Tensor


@dataclass(frozen=True)
class PairConfig:
    """How pairs are made.

    geometry: a name in GEOMETRIES; ``wide`` is ours.  style: photometric style of ``augment``.
    color: ``gray`` or ``rgb``.
    height, width: of the views in pixels.  turn_share: share of wide pairs turned by anything up to ±180°.
    zoom, stretch, hardness: of wide pairs, see WideHomographies.
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


class HomographyPairs(Dataset):
    """Endless pairs of views; item n depends on `images`, `config`, `seed` and n alone.

    points: image index → N×3 float32 (x, y, strength in (0, 1]) that the labels are drawn from; None for no labels.
    on_device: items are PairParts, and ``finish`` makes a batch of them into a PairBatch on the training device.
    """

    def __init__(
        self, images: Images, config: PairConfig, seed: int, points: Callable[[int], np.ndarray] | None = None,
        on_device: bool = False,
    ) -> None:
        if config.geometry not in GEOMETRIES:
            raise unknown_name("pair geometry", config.geometry, GEOMETRIES)
        self.images, self.config, self.seed, self.points = images, config, seed, points
        self.on_device = on_device
        self._order = (-1, np.zeros(0, np.int64))

    def __getitem__(self, number: int) -> PairBatch | PairParts:
        config = self.config
        epoch, position = divmod(number, len(self.images))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.images))
        index = int(self._order[1][position])
        rng = np.random.default_rng([self.seed, 2, number])
        photo = self.images[index]
        if config.color == "gray":
            photo = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
        elif config.style.startswith("kp2d"):
            photo = _mix_channels(photo, rng)
        photo_from_views = GEOMETRIES[config.geometry](photo.shape[:2], config, rng)
        size = (config.height, config.width)
        labels = [self._labels(index, photo_from_view) for photo_from_view in photo_from_views]
        homography = np.linalg.inv(photo_from_views[1]) @ photo_from_views[0]
        homography = torch.from_numpy((homography / homography[2, 2]).astype(np.float32))
        if self.on_device:
            parts = [cut_part(photo, photo_from_view, *size) for photo_from_view in photo_from_views]
            return PairParts(*parts, homography, *labels)
        images, masks = zip(*(warp_view(photo, photo_from_view, *size) for photo_from_view in photo_from_views))
        images = [to_channels(apply_style(image, config.style, rng)) for image in images]
        return PairBatch(*images, homography, *map(torch.from_numpy, masks), *labels)

    @torch.no_grad()
    def finish(self, batch: PairBatch | PairParts) -> PairBatch:
        """The pairs of a batch of items, warped and lit on the device that it is on; as it is where the loader did it.

        Draws from torch's generator of that device.
        """
        if isinstance(batch, PairBatch):
            return batch
        parts = Part(*map(torch.cat, zip(batch.part0, batch.part1)))
        views, masks = warp_parts(parts, self.config.height, self.config.width)
        images = light_images(views, self.config.style).round().to(torch.uint8)
        return PairBatch(*images.chunk(2), batch.homography, *masks.chunk(2), batch.labels0, batch.labels1)

    def _labels(self, index: int, photo_from_view: np.ndarray) -> Tensor:
        height, width = self.config.height, self.config.width
        if self.points is None:
            return torch.zeros((height, width), dtype=torch.uint8)
        x, y, strengths = self.points(index).T
        points = warp_points(np.linalg.inv(photo_from_view), np.column_stack([x, y]))
        return torch.from_numpy(draw_labels(points, strengths, height, width))


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


def _kp2d_views(
    photo_size: tuple[int, int], config: PairConfig, rng: np.random.Generator, scale: float = Kp2dHomographies.scale
) -> Sequence[np.ndarray]:
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
    target_from_source = homography_from_corners(corners, Kp2dHomographies(scale=scale).sample(rng) * half + centre)
    return photo_from_target @ target_from_source, photo_from_target


def _superpoint_views(
    photo_size: tuple[int, int], config: PairConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """photo_from_view of SuperPoint's image, the middle of the photograph resized to fill the view, and of its warp."""
    view = np.array([config.width, config.height])
    zoom = (np.array(photo_size[::-1]) / view).min()
    return _crop_and_warp(SuperPointHomographies().sample(rng), (np.array(photo_size[::-1]) - 1) / 2, zoom, config)


def _silk_views(
    photo_size: tuple[int, int], config: PairConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """photo_from_view of SiLK's crop and of its warp.

    Photographs larger than COCO's are seen as if their shorter side had COCO's 480 pixels.
    """
    size, view = np.array(photo_size[::-1]), np.array([config.width, config.height])
    zoom = min(max(1.0, size.min() / 480), (size / view).min())
    centre = rng.uniform(zoom * view / 2, size - zoom * view / 2) - 0.5
    return _crop_and_warp(SilkHomographies().sample(rng), centre, zoom, config)


def _crop_and_warp(
    warp: np.ndarray, centre: np.ndarray, zoom: float, config: PairConfig
) -> tuple[np.ndarray, np.ndarray]:
    """photo_from_view of an upright crop about `centre`, and of the view whose corners (half widths) `warp` gives."""
    corners = view_corners(config.height, config.width)
    half = zoom * np.array([config.width, config.height]) / 2
    first = homography_from_corners(corners, (corners - corners.mean(0)) * zoom + centre)
    return first, homography_from_corners(corners, warp * half + centre)


GEOMETRIES = {
    "wide": _wide_views, "kp2d": _kp2d_views, "kp2d_paper": functools.partial(_kp2d_views, scale=0.2),
    "superpoint": _superpoint_views, "silk": _silk_views,
}


def _mix_channels(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """KP2D: both views share a shuffled channel order (p 0.5) and being grey (p 0.5)."""
    if rng.uniform() < 0.5:
        photo = np.ascontiguousarray(photo[..., rng.permutation(3)])
    if rng.uniform() < 0.5:
        photo = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return photo
