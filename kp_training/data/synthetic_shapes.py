"""Synthetic shapes: drawings whose corners are known, SuperPoint's first teacher (its section 4; METHODS.md section 2).

The homographic augmentation moves the shapes' outlines, not a finished picture: edges stay as sharp as the paper's,
which are drawn at eight times the size, and no part of a view is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kp_frontend.errors import InputError, unknown_name
from kp_training.augment import apply_style
from kp_training.data.canvas import OVERSAMPLING, Canvas
from kp_training.data.corners import draw_labels
from kp_training.geometry.homography import (
    SuperPointHomographies,
    homography_from_corners,
    view_corners,
    warp_points,
)


class ShapeBatch(NamedTuple):
    """B drawings.

    image: B×1×H×W uint8.  labels: B×H×W uint8, 255 at the pixel nearest to each corner.
    mask: B×H×W bool, where labels are to be trusted: everywhere.
    """

    image: Tensor
    labels: Tensor
    mask: Tensor


def lines(canvas: Canvas) -> None:
    """Lines that do not cross; corners at both ends."""
    rng = canvas.rng
    for _ in range(rng.integers(2, 11)):
        ends = rng.uniform([0, 0], [canvas.width, canvas.height], (2, 2))
        outline = _bar(canvas, *ends)
        if np.linalg.norm(ends[1] - ends[0]) > 15 * canvas.unit and canvas.claim(outline):
            canvas.fill(outline, canvas.level(_along(*ends)))
            canvas.mark(ends)


def polygon(canvas: Canvas) -> None:
    """One polygon."""
    _draw_polygons(canvas, 1, 0.45)


def multiple_polygons(canvas: Canvas) -> None:
    """Polygons that do not touch."""
    _draw_polygons(canvas, 30, 0.3)


def ellipses(canvas: Canvas) -> None:
    """Ellipses that do not touch; no corners."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.column_stack([np.cos(turn), np.sin(turn)])
    for _ in range(canvas.rng.integers(4, 25)):
        centre, radius = canvas.place(0.3)
        angle, squeeze = canvas.rng.uniform(0, np.pi), canvas.rng.uniform(0.3, 1)
        outline = centre + radius * (circle * [1, squeeze]) @ _turn(angle).T
        if canvas.claim(outline):
            canvas.fill(outline, canvas.level(outline[::8]))


def star(canvas: Canvas) -> None:
    """Lines from one point; corners at their ends and where they meet."""
    rng = canvas.rng
    centre = rng.uniform([0.3, 0.3], [0.7, 0.7]) * [canvas.width, canvas.height]
    angles = _spread_angles(rng, int(rng.integers(3, 7)), 0.35)[0]
    reach = rng.uniform(0.2, 0.6, len(angles)) * min(canvas.height, canvas.width)
    ends = centre + reach[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    level = canvas.level(np.vstack([_along(centre, end) for end in ends]))
    for end in ends:
        canvas.fill(_bar(canvas, centre, end), level)
    canvas.mark(np.vstack([centre, ends]))


def checkerboard(canvas: Canvas) -> None:
    """A board of 2×2 to 7×7 fields; corners where fields meet, the board's rim included."""
    rows, columns = canvas.rng.integers(2, 8, 2)
    grid = _board(canvas, np.linspace(-1, 1, rows + 1), np.linspace(-1, 1, columns + 1))
    first = canvas.level(grid.reshape(-1, 2))
    second = canvas.level(grid.reshape(-1, 2), first)
    levels = np.where(np.indices((rows, columns)).sum(0) % 2, first, second)
    _paint_board(canvas, grid, levels + canvas.rng.uniform(-6, 6, levels.shape))


def stripes(canvas: Canvas) -> None:
    """Bars side by side, of any widths; corners at their ends."""
    rng = canvas.rng
    widths = rng.uniform(0.4, 1, rng.integers(3, 11))
    edges = np.append(0, np.cumsum(widths)) / widths.sum() * 2 - 1
    grid = _board(canvas, np.array([-1.0, 1.0]), edges)
    levels: list[float] = []
    for _ in widths:
        levels.append(canvas.level(grid.reshape(-1, 2), *levels[-1:]))
    _paint_board(canvas, grid, np.array([levels]))


def cube(canvas: Canvas) -> None:
    """A box seen from a corner: three faces of different levels, seven corners."""
    rng = canvas.rng
    size = min(canvas.height, canvas.width)
    centre = rng.uniform([0.35, 0.35], [0.65, 0.65]) * [canvas.width, canvas.height]
    normals = _box_view(rng)
    edges = normals * rng.uniform(0.15, 0.4, (3, 1)) * size
    middle = edges.sum(0)[:2] / 2
    # The corner nearest to the eye is where the three visible faces meet; edges lead away from it.
    near, away = centre + middle, -edges[:, :2]
    levels: list[float] = []
    faces = [near + np.array([0 * a, a, a + b, b]) for a, b in zip(away, np.roll(away, -1, axis=0))]
    for face in faces:
        levels.append(canvas.level(np.vstack([face, face.mean(0)]), *levels))
    for face, level in zip(faces, levels):
        canvas.fill(face, level)
    canvas.mark(np.unique(np.rint(np.vstack(faces) * 1e6), axis=0) / 1e6)


def gaussian_noise(canvas: Canvas) -> None:
    """Noise of one to eight pixels' grain; no corners."""
    rng, shape = canvas.rng, canvas.image.shape
    grain = rng.uniform(1, 8) * canvas.unit * OVERSAMPLING
    cells = rng.standard_normal([int(side / grain) + 1 for side in shape], np.float32)
    noise = cv2.resize(cells, shape[::-1], interpolation=cv2.INTER_LINEAR)
    canvas.image = np.clip(rng.uniform(60, 195) + rng.uniform(15, 70) * noise, 0, 255).astype(np.uint8)


SHAPES: dict[str, Callable[[Canvas], None]] = {
    shape.__name__: shape
    for shape in (
        lines, polygon, multiple_polygons, ellipses, star, checkerboard, stripes, cube, gaussian_noise,
    )
}  # fmt: skip


@dataclass(frozen=True)
class ShapesConfig:
    """height, width: of the drawings in pixels.  shapes: names of ``SHAPES``, drawn equally often.

    style: photometric style of ``augment``.  patch: of the homographic augmentation (the share of the plane that a view
    shows), 0 for none.
    """

    height: int = 120
    width: int = 160
    shapes: tuple[str, ...] = tuple(SHAPES)
    style: str = "superpoint"
    patch: float = 0.8


class SyntheticShapes(Dataset):
    """Endless drawings; item n, a ShapeBatch without its first dimension, depends on `config`, `seed` and n alone.

    Raises InputError for an unknown shape and for none.
    """

    def __init__(self, config: ShapesConfig = ShapesConfig(), seed: int = 0) -> None:
        for name in config.shapes:
            if name not in SHAPES:
                raise unknown_name("synthetic shape", name, SHAPES)
        if not config.shapes:
            raise InputError(f"no synthetic shapes to draw; give some of: {', '.join(SHAPES)}")
        self.config, self.seed = config, seed

    def __getitem__(self, number: int) -> ShapeBatch:
        config, rng = self.config, np.random.default_rng([self.seed, 4, number])
        canvas = Canvas(config.height, config.width, self._view_from_plane(rng), rng)
        SHAPES[config.shapes[rng.integers(len(config.shapes))]](canvas)
        corners = np.vstack([np.empty((0, 2)), *canvas.corners])
        labels = draw_labels(corners, np.ones(len(corners)), config.height, config.width)
        image = apply_style(canvas.finished(), config.style, rng)
        return ShapeBatch(torch.from_numpy(image)[None], torch.from_numpy(labels),
                          torch.ones(labels.shape, dtype=torch.bool))

    def _view_from_plane(self, rng: np.random.Generator) -> np.ndarray:
        if self.config.patch == 0:
            return np.eye(3)
        corners = view_corners(self.config.height, self.config.width)
        half = np.array([self.config.width, self.config.height]) / 2
        seen = SuperPointHomographies(self.config.patch).sample(rng) * half + corners.mean(0)
        return np.linalg.inv(homography_from_corners(corners, seen))


def contact_sheet(config: ShapesConfig = ShapesConfig(), seed: int = 0, columns: int = 8, zoom: int = 3) -> np.ndarray:
    """A picture (BGR uint8) of some drawings of every shape, a row each, with their corners circled."""
    rows = []
    for name in config.shapes:
        drawings = SyntheticShapes(replace(config, shapes=(name,)), seed)
        rows.append(np.hstack([_circled(drawings[number], zoom) for number in range(columns)]))
    return np.vstack(rows)


def _circled(drawing: ShapeBatch, zoom: int) -> np.ndarray:
    picture = cv2.resize(drawing.image[0].numpy(), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    for y, x in (zoom * drawing.labels.nonzero() + zoom // 2).tolist():
        cv2.circle(picture, (x, y), 5, (0, 255, 0), 1)
    return picture


def _draw_polygons(canvas: Canvas, tries: int, largest: float) -> None:
    for _ in range(tries):
        centre, radius = canvas.place(largest)
        outline = centre + radius * _blob(canvas.rng, 6 * canvas.unit / radius)
        if canvas.claim(outline):
            canvas.fill(outline, canvas.level(np.vstack([outline, outline.mean(0)])))
            canvas.mark(outline)


def _blob(rng: np.random.Generator, shortest: float) -> np.ndarray:
    """N×2 outline of 3 to 7 corners about the origin within the unit circle, no edge shorter than `shortest` and no
    corner sharper than 25° or blunter than 150°."""
    while True:
        angles = _spread_angles(rng, int(rng.integers(3, 8)), 0.3, 16)
        candidates = rng.uniform(0.4, 1, angles.shape) * np.exp(1j * angles)  # the plane as complex numbers
        ahead = np.roll(candidates, -1, 1) - candidates
        turns = np.abs(np.angle(ahead / np.roll(ahead, 1, 1)))
        good = (np.abs(ahead) > shortest) & (turns > np.radians(30)) & (turns < np.radians(155))
        good &= (np.roll(candidates, -1, 1) / candidates).imag > 0  # around the origin, so that no edges cross
        if (found := good.all(1)).any():
            outline = candidates[found.argmax()]
            return np.column_stack([outline.real, outline.imag])


def _spread_angles(rng: np.random.Generator, count: int, least: float, sets: int = 1) -> np.ndarray:
    """sets×count: `count` angles around the circle, at least `least` radians between neighbours."""
    gaps = rng.dirichlet(np.ones(count), sets) * (2 * np.pi - count * least) + least
    return rng.uniform(0, 2 * np.pi, (sets, 1)) + np.cumsum(gaps, 1)


def _bar(canvas: Canvas, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """4×2 outline of a line of 1.2 to 2.4 units' thickness."""
    along = (end - start) / max(np.linalg.norm(end - start), 1e-9)
    side = np.array([-along[1], along[0]]) * canvas.rng.uniform(0.6, 1.2) * canvas.unit
    return np.array([start + side, end + side, end - side, start - side])


def _along(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return start + np.linspace(0, 1, 8)[:, None] * (end - start)


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _board(canvas: Canvas, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(R+1)×(C+1)×2 crossings on the plane of the lines `rows` and `columns` (in [−1, 1]) of a slanted board."""
    rng = canvas.rng
    size = np.array([canvas.width, canvas.height])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    outline = corners * rng.uniform(0.35, 0.6, 2) + rng.normal(0, 0.05, (4, 2)) + rng.normal(0, 0.05, 2)
    outline = outline @ _turn(rng.uniform(0, 2 * np.pi)).T + 0.5
    crossings = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    return warp_points(homography_from_corners(corners, outline * size), crossings).reshape(len(rows), len(columns), 2)


def _paint_board(canvas: Canvas, grid: np.ndarray, levels: np.ndarray) -> None:
    cells = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], 2).reshape(-1, 4, 2)
    for cell, level in zip(cells, levels.ravel()):
        canvas.fill(cell, float(level))
    canvas.mark(grid.reshape(-1, 2))


def _box_view(rng: np.random.Generator) -> np.ndarray:
    """3×3: directions of a box's edges (rows) in a view along z, all leaning at least 0.3 towards the eye."""
    while True:
        axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        axes *= np.sign(axes[:, 2:])
        if axes[:, 2].min() > 0.3:
            return axes
