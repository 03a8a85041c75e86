"""Keypoints and descriptors on pairs of images with a known homography (HPatches-style sequences).

Two presets, which differ in what they count (EVALUATION.md, traps 1 and 5), so their figures never mix:

- ``kp2d``: KP2D's protocol to the letter.  Repeatability and corner errors keep the points that the other image
  shows and then the best `top_k` of them; matching score takes the best `top_k` of all, one-way neighbours,
  and counts those whose neighbour is visible.
- ``shared``: the best `top_k` of each image, mutual neighbours among all of them; repeatability of the shared ones;
  matching score is correct matches over the least number of shared points.  Distances are in pixels of the image
  that a point is warped into, images are shrunk by area, homographies keep pixel centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.extractors.base import Extractor
from kp_frontend.features import Features
from kp_frontend.matching import match
from kp_training.geometry.homography import scale_homography, warp_points

RADIUS = 3.0
CORNER_ERRORS = (1, 3, 5)
CURVE = tuple(range(1, 11))
POOL = 10
"""KP2D chooses among all points; an extractor is asked for this many times `top_k`."""


@dataclass(frozen=True, eq=False)
class HomographyPair:
    """Two images, H×W×3 BGR uint8, with the 3×3 homography image1_from_image0 in pixels.

    sequence: folder name.  name: number of the second image.
    """

    sequence: str
    name: str
    image0: np.ndarray
    image1: np.ndarray
    homography: np.ndarray


@dataclass(frozen=True, eq=False)
class Side:
    """One image's features and size, for scoring.  shape: (height, width)."""

    features: Features
    shape: tuple[int, int]


def find_sequences(folder: Path) -> list[Path]:
    """Folders under `folder` (or itself) that hold ``H_1_k`` files, in name order; InputError where none does."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give a folder of sequences with images 1.png, 2.png … and H_1_2 …")
    sequences = sorted({path.parent for path in folder.rglob("H_1_*") if path.is_file()})
    if not sequences:
        raise InputError(f"{folder} holds no sequence: expected folders with images 1.png, 2.png … and H_1_2 …")
    return sequences


def load_pairs(sequence: Path, size: tuple[int, int] | None, as_kp2d: bool) -> Iterator[HomographyPair]:
    """Pairs (1, k) of a sequence, stretched to `size` (width, height) if given.

    as_kp2d: resize bilinearly and rescale the homography by plain factors, as KP2D's loader does; else resize by
    area and keep pixel centres at integers.
    Raises InputError for an image or homography that cannot be read.
    """
    first, first_scale = _load_image(sequence, "1", size, as_kp2d)
    for file in sorted(sequence.glob("H_1_*"), key=lambda path: (len(path.name), path.name)):
        name = file.name.removeprefix("H_1_")
        second, second_scale = _load_image(sequence, name, size, as_kp2d)
        homography = _load_homography(file)
        if as_kp2d:
            homography = np.diag([*second_scale, 1]) @ homography @ np.diag([*(1 / first_scale), 1])
        else:
            homography = scale_homography(homography, first_scale, second_scale)
        yield HomographyPair(sequence.name, name, first, second, homography)


def _load_image(
    sequence: Path, name: str, size: tuple[int, int] | None, as_kp2d: bool
) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(path for path in sequence.glob(f"{name}.*"))
    image = cv2.imread(str(files[0]), cv2.IMREAD_COLOR) if files else None
    if image is None:
        raise InputError(f"{sequence}: no readable image {name}.png (or .ppm, .jpg …) beside H_1_{name}")
    if size is None:
        return image, np.ones(2)
    scale = np.array(size) / image.shape[1::-1]
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR if as_kp2d else cv2.INTER_AREA), scale


def _load_homography(file: Path) -> np.ndarray:
    try:
        homography = np.loadtxt(file)
    except ValueError as error:
        raise InputError(f"{file}: expected 3×3 numbers ({error})") from error
    if homography.shape != (3, 3) or not np.isfinite(homography).all() or abs(np.linalg.det(homography)) < 1e-12:
        raise InputError(f"{file}: expected an invertible 3×3 matrix, got shape {homography.shape}")
    return homography


def visible(points: np.ndarray, homography: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """N bool: N×2 `points` land inside an image of `shape` (height, width) under `homography`."""
    warped = warp_points(homography, points)
    with np.errstate(invalid="ignore"):
        return ((warped >= 0) & (warped <= np.array(shape[::-1]) - 1)).all(1)


def repeatability(
    points0: np.ndarray, points1: np.ndarray, homography: np.ndarray, one_frame: bool = False
) -> tuple[float, float]:
    """Share of points with a neighbour within 3 px, both ways, and the mean distance of those.

    points0, points1: those that the other image shows.  (0, nan) where there is none.
    one_frame: measure both ways in image 1, as KP2D does; else each point in the image it is warped into.
    """
    if not len(points0) or not len(points1):
        return 0.0, float("nan")
    forward = np.linalg.norm(warp_points(homography, points0)[:, None] - points1, axis=-1)
    if one_frame:
        backward = forward.T
    else:
        backward = np.linalg.norm(warp_points(np.linalg.inv(homography), points1)[:, None] - points0, axis=-1)
    nearest = np.concatenate([forward.min(1), backward.min(1)])
    near = nearest[nearest <= RADIUS]
    return len(near) / len(nearest), float(near.mean()) if len(near) else float("nan")


def corner_error(points0: np.ndarray, points1: np.ndarray, homography: np.ndarray, shape: tuple[int, int]) -> float:
    """Mean error in pixels of image 0's corners under the homography that RANSAC finds; inf where it finds none."""
    if len(points0) < 4:
        return float("inf")
    cv2.setRNGSeed(0)
    estimate, _ = cv2.findHomography(points0[:, None], points1[:, None], cv2.RANSAC, RADIUS, maxIters=5000)
    if estimate is None:
        return float("inf")
    height, width = shape
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)
    error = np.linalg.norm(warp_points(estimate, corners) - warp_points(homography, corners), axis=1).mean()
    return float(np.nan_to_num(error, nan=np.inf))


def score_shared(side0: Side, side1: Side, homography: np.ndarray, top_k: int) -> dict[str, float]:
    """The ``shared`` preset's metrics of one pair."""
    all0, all1 = side0.features.top_k(top_k), side1.features.top_k(top_k)
    kept0 = _shared(all0, homography, side1.shape)
    kept1 = _shared(all1, np.linalg.inv(homography), side0.shape)
    repeated, location = repeatability(kept0.keypoints, kept1.keypoints, homography)
    points0, points1, errors = _matched(all0, all1, homography)
    accuracy = {f"MMA@{t}": float((errors <= t).mean()) if len(errors) else 0.0 for t in CURVE}
    least = min(len(kept0), len(kept1))
    return {
        "Rep": repeated, "LE": location, **accuracy,
        "M.Score": float((errors <= RADIUS).sum() / least) if least else 0.0,
        **_corner_scores(corner_error(points0, points1, homography, side0.shape)),
        "matches": float(len(errors)), "points": float(least),
    }


def score_kp2d(side0: Side, side1: Side, homography: np.ndarray, top_k: int) -> dict[str, float]:
    """The ``kp2d`` preset's metrics of one pair (EVALUATION.md section A)."""
    inverse = np.linalg.inv(homography)
    kept0 = _shared(side0.features, homography, side1.shape).top_k(top_k)
    kept1 = _shared(side1.features, inverse, side0.shape).top_k(top_k)
    repeated, location = repeatability(kept0.keypoints, kept1.keypoints, homography, one_frame=True)
    points0, points1, _ = _matched(kept0, kept1, homography)
    all0, all1 = side0.features.top_k(top_k), side1.features.top_k(top_k)
    ways = (one_way_score(all0, all1, inverse, side0.shape), one_way_score(all1, all0, homography, side1.shape))
    return {
        "Rep": repeated, "LE": location, "M.Score": float(np.mean(ways)),
        **_corner_scores(corner_error(points0, points1, homography, side0.shape)),
        "points": float(min(len(kept0), len(kept1))),
    }


def one_way_score(query: Features, train: Features, query_from_train: np.ndarray, shape: tuple[int, int]) -> float:
    """Of the neighbours in `train` that the query's image (`shape`) shows, the share less than 3 px from the truth."""
    if not len(query) or not len(train):
        return 0.0
    found = match(query, train, mutual=False)
    points = train.keypoints[found.train]
    shown = visible(points, query_from_train, shape)
    with np.errstate(invalid="ignore"):
        correct = np.linalg.norm(warp_points(query_from_train, points) - query.keypoints[found.query], axis=1) < RADIUS
    return float((correct & shown).sum() / max(shown.sum(), 1))


def _matched(kept0: Features, kept1: Features, homography: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual neighbours' points in both images and their errors in pixels of image 1."""
    if not len(kept0) or not len(kept1):
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0)
    found = match(kept0, kept1, mutual=True)
    points0, points1 = kept0.keypoints[found.query], kept1.keypoints[found.train]
    return points0, points1, np.linalg.norm(warp_points(homography, points0) - points1, axis=1)


def _shared(features: Features, homography: np.ndarray, shape: tuple[int, int]) -> Features:
    return features.select(visible(features.keypoints, homography, shape))


def _corner_scores(error: float) -> dict[str, float]:
    return {f"Cor-{limit}": float(error <= limit) for limit in CORNER_ERRORS}


@dataclass(frozen=True)
class Preset:
    """A named protocol.  score: metrics of one pair.  pool: points asked of the extractor, times `top_k`.

    as_kp2d: see `load_pairs`.  columns: what the table shows.
    """

    score: Callable[[Side, Side, np.ndarray, int], dict[str, float]]
    pool: int
    as_kp2d: bool
    columns: tuple[str, ...]


PRESETS = {
    "shared": Preset(score_shared, 1, False, ("Rep", "LE", "MMA@1", "MMA@3", "MMA@5", "M.Score",
                                             "Cor-1", "Cor-3", "Cor-5", "matches")),
    "kp2d": Preset(score_kp2d, POOL, True, ("Rep", "LE", "M.Score", "Cor-1", "Cor-3", "Cor-5", "points")),
}


def evaluate(
    sequences: Sequence[Path], load: Callable[[int], Extractor], preset: str, size: tuple[int, int] | None, top_k: int,
    advance: Callable[[], None] = lambda: None,
) -> list[dict]:
    """One row a pair: sequence, name and metrics of `preset`.

    load: makes the extractor for a number of points.  size: (width, height) or None for the images' own.
    advance: called after each pair.  Raises InputError for an unknown preset.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    protocol = PRESETS[preset]
    extractor = load(protocol.pool * top_k)
    rows = []
    for sequence in sequences:
        side0 = None
        for pair in load_pairs(sequence, size, protocol.as_kp2d):
            side0 = side0 or Side(extractor.extract(pair.image0), pair.image0.shape[:2])
            side1 = Side(extractor.extract(pair.image1), pair.image1.shape[:2])
            metrics = protocol.score(side0, side1, pair.homography, top_k)
            rows.append({"sequence": pair.sequence, "pair": f"1-{pair.name}", **metrics})
            advance()
    return rows


def averages(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Mean of each metric by sequence and, under ``mean``, over all pairs; LE over the pairs that have one."""
    names = dict.fromkeys(row["sequence"] for row in rows)
    groups = {name: [row for row in rows if row["sequence"] == name] for name in names} | {"mean": list(rows)}
    return {name: _mean(group) for name, group in groups.items()}


def _mean(rows: Sequence[dict]) -> dict[str, float]:
    keys = [key for key in rows[0] if key not in ("sequence", "pair")]
    columns = {key: np.array([row[key] for row in rows], float) for key in keys}
    return {key: float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else float("nan")
            for key, column in columns.items()}
