"""Random homographies between two views of one photograph, and points under them.

Every homography here is 3×3 in pixels, pixel centres at integers, and maps the view named last to the view
named first: ``target_from_source``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_CORNERS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@dataclass(frozen=True)
class Kp2dHomographies:
    """KP2D's sampling: the source view lies wholly inside the target (METHODS.md section 1).

    Amplitudes are in the units of the target scaled to [−1, 1]; rotation in radians.  scale is the code's; the paper
    prints 0.2.
    """

    patch: float = 0.7
    perspective: float = 0.2
    scale: float = 0.1
    rotation: float = np.pi / 4
    rotation_steps: int = 100

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Corners (4×2, in [−1, 1] of the target) that the source view's corners map to."""
        corners = self.patch * _CORNERS
        clipped = np.clip(rng.normal(0, self.perspective, 4), -self.perspective, self.perspective)
        corners = corners + _trapezoid(*clipped) * min(1.0, (1 - self.patch) / max(self.perspective, 1e-9))
        factor = np.clip(rng.normal(1, self.scale), 1 - self.scale, 1 + self.scale)
        corners = _if_inside(_about_centre(corners, factor * np.eye(2)), corners)
        angles = rng.permutation(np.linspace(-self.rotation, self.rotation, self.rotation_steps))
        turned = (_about_centre(corners, _rotation(angle)) for angle in angles)
        corners = next((candidate for candidate in turned if _inside(candidate)), corners)
        room_low, room_high = -1 - corners.min(0), 1 - corners.max(0)
        return corners + rng.uniform(np.minimum(room_low, 0), np.maximum(room_high, 0))


@dataclass(frozen=True)
class WideHomographies:
    """What a camera in the hand sees: small steps and wide ones, tilt, zoom, and any roll.

    Every amplitude is multiplied by one difficulty per pair, in [0, 1], uniform for a hardness of 1 (so that small
    baselines are common) and the greater of two such for 2.
    zoom, stretch: octaves.  perspective, shift: in half widths of the view.
    turn_share: share of pairs turned by anything up to ±180°; the others by up to ±rotation (radians).
    """

    zoom: float = 1.0
    stretch: float = 1.0
    perspective: float = 0.3
    shift: float = 0.35
    rotation: float = np.pi / 4
    turn_share: float = 0.5
    hardness: float = 1.0

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Corners (4×2, in half widths of the first view about its centre) that the second view's corners map to."""
        difficulty = rng.uniform() ** (1 / self.hardness)
        axis = _rotation(rng.uniform(0, np.pi))
        squeeze = axis @ np.diag([1.0, 2.0 ** (difficulty * rng.uniform(0, self.stretch))]) @ axis.T
        squeeze /= np.sqrt(np.linalg.det(squeeze))
        largest = np.pi if rng.uniform() < self.turn_share else difficulty * self.rotation
        angle = rng.uniform(-largest, largest)
        factor = 2.0 ** (difficulty * rng.uniform(-self.zoom, self.zoom))
        corners = _CORNERS + difficulty * _trapezoid(*rng.uniform(-self.perspective, self.perspective, 4))
        return corners @ (factor * squeeze @ _rotation(angle)).T + difficulty * rng.uniform(-self.shift, self.shift, 2)


@dataclass(frozen=True)
class SuperPointHomographies:
    """SuperPoint's homographic augmentation and adaptation (rpautrat's public numbers; METHODS.md section 2).

    A patch of `patch` of the view is tilted, scaled, moved as far as it stays inside the first view, and turned.
    Amplitudes are in the units of the view scaled to [0, 1], drawn from normals of half that deviation and cut there;
    rotation (radians) is uniform, where the code draws from 25 steps.  As in the code, turning acts on the view
    scaled to a square.
    """

    patch: float = 0.85
    perspective: float = 0.2
    scale: float = 0.2
    rotation: float = np.pi / 2

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Corners (4×2, in half widths of the first view about its centre) that the second view's corners map to."""
        tilt, left, right = _truncated_normal(rng, 2 * self.perspective, 3)  # a unit is two half widths
        moved = self.patch * _CORNERS + [[left, tilt], [right, -tilt], [right, tilt], [left, -tilt]]
        moved = _about_centre(moved, (1 + _truncated_normal(rng, self.scale, 1)[0]) * np.eye(2))
        room_low, room_high = -1 - moved.min(0), 1 - moved.max(0)
        moved = moved + rng.uniform(np.minimum(room_low, room_high), np.maximum(room_low, room_high))
        moved = _about_centre(moved, _rotation(rng.uniform(-self.rotation, self.rotation)))
        return warp_points(homography_from_corners(self.patch * _CORNERS, moved), _CORNERS)


@dataclass(frozen=True)
class SilkHomographies:
    """SiLK's second view (METHODS.md section 4): zoomed in, turned and tilted about the first one's centre.

    scale: of the view's frame on the first view, uniform from `smallest` to `largest`.  in_plane, out_of_plane:
    radians, uniform to both sides.  The axis of the tilt is uniform in the plane and the camera `distance` half widths
    away (both unstated: a field of view of 53°).
    """

    smallest: float = 0.6
    largest: float = 0.9
    in_plane: float = 0.39
    out_of_plane: float = 0.78
    distance: float = 2.0

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Corners (4×2, in half widths of the first view about its centre) that the second view's corners map to."""
        factor = rng.uniform(self.smallest, self.largest)
        tilt = rng.uniform(-self.out_of_plane, self.out_of_plane)
        axis = _rotation(rng.uniform(0, np.pi))
        turned = factor * _CORNERS @ _rotation(rng.uniform(-self.in_plane, self.in_plane)).T
        along, across = (turned @ axis).T
        depth = self.distance + across * np.sin(tilt)
        flat = np.column_stack([along, across * np.cos(tilt)]) * (self.distance / depth)[:, None]
        return flat @ axis.T


def homography_from_corners(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """3×3 float64 target_from_source for four corresponding points (4×2 each, no three on a line)."""
    return cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))


def view_corners(height: int, width: int) -> np.ndarray:
    """4×2 outer corners of an image in pixels: (−0.5, −0.5) to (width − 0.5, height − 0.5), clockwise."""
    return (_CORNERS + 1) / 2 * [width, height] - 0.5


def warp_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """N×2 float64: `points` under `homography`; nan for those at or behind the horizon."""
    mapped = np.column_stack([points, np.ones(len(points))]) @ homography.T
    depth = np.where(mapped[:, 2:] > 1e-9 * abs(homography[2, 2]), mapped[:, 2:], np.nan)
    return mapped[:, :2] / depth


def scale_homography(homography: np.ndarray, source_scale: np.ndarray, target_scale: np.ndarray) -> np.ndarray:
    """The homography between two images after resizing each by (x, y) factors, pixel centres kept consistent."""
    return _resize(target_scale) @ homography @ np.linalg.inv(_resize(source_scale))


def _resize(scale: np.ndarray) -> np.ndarray:
    # A pixel covers ±0.5 about its centre, so x' + 0.5 = scale · (x + 0.5).
    x, y = scale
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]])


def _trapezoid(top: float, bottom: float, left: float, right: float) -> np.ndarray:
    """Shift of each corner when the view tilts about both axes."""
    return np.array([[-top, -left], [top, -right], [bottom, right], [-bottom, left]])


def _truncated_normal(rng: np.random.Generator, limit: float, count: int) -> np.ndarray:
    """Normal draws of deviation limit / 2, those beyond `limit` drawn again."""
    draws = rng.standard_normal(count)
    while (far := np.abs(draws) > 2).any():
        draws[far] = rng.standard_normal(far.sum())
    return draws * (limit / 2)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _about_centre(corners: np.ndarray, linear: np.ndarray) -> np.ndarray:
    centre = corners.mean(0)
    return (corners - centre) @ linear.T + centre


def _inside(corners: np.ndarray) -> bool:
    return bool((np.abs(corners) <= 1).all())


def _if_inside(corners: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return corners if _inside(corners) else otherwise
