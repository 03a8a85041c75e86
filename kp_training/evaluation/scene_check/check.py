"""Whether the poses, depth and intrinsics of a scene fit together, and if not, which usual mistake explains it.

With depth: the points of one frame are looked for in another, where the depth must be theirs.  Without: matches of SIFT
must lie on their epipolar lines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from kp_frontend import load_extractor
from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_frontend.matching import match
from kp_training.data.overlap import pose_overlap
from kp_training.data.posed import PosedFrame, PosedScene, evenly
from kp_training.evaluation.scene_check.conventions import (
    UNITS,
    Convention,
    combinations,
    from_one_place,
    read_as,
)
from kp_training.evaluation.scene_check.reprojection import (
    SHARE,
    Reprojected,
    agreement,
    fundamental_matrix,
    line_distances,
    reproject,
    spread_pixels,
)

STRIDES = (1, 3, 10)
PAIRS = 20
"""Of a stride at most, evenly spread."""
TRIED = 8
"""Pairs in which other conventions are tried."""
PIXELS = 20_000
"""Of a pair, compared."""
THUMBNAIL, FEW_PIXELS = 160, 3000
"""Of a side of the frames in which other conventions are tried, and those compared there."""
NEAR_LINE = 2.0
"""Pixels from its epipolar line at which a match is on it."""
AGREE, ON_LINE = 0.75, 0.6
"""Least share of pixels that agree, and of matches on their lines, where a scene's numbers fit together."""
BETTER = 1.1
"""How much more another convention must find again to be named; it must also explain half of what is wrong.

One of another unit must find so much more than without any motion, too: the smaller that is beside the depth, the less
it matters whether it is right."""
NEARLY = 0.95
"""Of what the best convention finds again; of those that find as much, the one of fewest mistakes is named."""
FEWEST = 100
"""Pixels, or matches, in all, below which nothing is said of a scene."""


@dataclass(frozen=True)
class PairCheck:
    """What two frames of a scene say; nan for what cannot be said.

    stride: 0 in a scene without order.  compared: co-visible pixels, or matches.  agree: of them, the share whose depth
    agrees, or that are on their lines.
    overlap, hidden: shares of the first frame's pixels of known depth that are co-visible, and that others hide.
    grey, shuffled: median difference of levels of pixels that agree, and of the same with places exchanged.
    distance: median pixels from the line.
    """

    first: int
    second: int
    stride: int
    compared: int
    agree: float
    overlap: float = np.nan
    hidden: float = np.nan
    grey: float = np.nan
    shuffled: float = np.nan
    distance: float = np.nan


@dataclass(frozen=True)
class SceneCheck:
    """A scene's numbers and what was found.

    size: width and height of a frame.  intrinsics: fx, fy, cx, cy.  path: length of the cameras' way in order.
    depth_known: share of pixels.  depth_quantiles: 5, 50 and 95 %.  unreadable: of the frames looked at.
    good: None where too little could be compared.  mistake: the convention that explains what is wrong, "" for none.
    """

    name: str
    frames: int
    size: tuple[int, int]
    intrinsics: tuple[float, float, float, float]
    metric: bool
    ordered: bool
    has_depth: bool
    path: float
    depth_known: float
    depth_quantiles: tuple[float, float, float]
    unreadable: int
    pairs: tuple[PairCheck, ...]
    good: bool | None
    verdict: str
    mistake: str

    @property
    def agree(self) -> float:
        """Of all that was compared, the share that agrees; 0 where nothing was."""
        return pooled(self.pairs)


class View:
    """A frame and what is found in it when asked for."""

    def __init__(self, frame: PosedFrame) -> None:
        self.frame = frame

    @functools.cached_property
    def features(self) -> Features:
        return _sift().extract(self.frame.image)

    @functools.cached_property
    def grey(self) -> np.ndarray:
        return cv2.cvtColor(self.frame.image, cv2.COLOR_BGR2GRAY).astype(np.int16)

    @functools.cached_property
    def thumbnail(self) -> PosedFrame:
        """Every so many-th pixel."""
        frame = self.frame
        step = -(-max(frame.image.shape[:2]) // THUMBNAIL)
        return replace(frame, image=frame.image[::step, ::step], depth=frame.depth[::step, ::step],
                       intrinsics=np.diag([1 / step, 1 / step, 1]) @ frame.intrinsics)


class Views:
    """The latest frames of a scene by index; None for those that cannot be read or lack their depth."""

    def __init__(self, scene: PosedScene) -> None:
        self.scene, self.unreadable, self.error = scene, set[int](), ""
        self.sample: PosedFrame | None = None
        self._latest = functools.lru_cache(16)(self._open)

    def __call__(self, index: int) -> View | None:
        return self._latest(index)

    def _open(self, index: int) -> View | None:
        try:
            frame = self.scene[index]
        except InputError as error:
            self.unreadable.add(index)
            self.error = str(error)
            return None
        self.sample = self.sample or frame
        return View(frame)


def check_scene(
    scene: PosedScene, strides: Sequence[int] = STRIDES, advance: Callable[[int, int], None] = lambda done, of: None
) -> SceneCheck:
    """Compare pairs of frames of a scene at `strides`; `advance` is told how many of how many are done.

    Raises InputError where no frame can be read, or there is but one.
    """
    if len(scene) < 2:
        raise InputError(f"{scene.name} has {len(scene)} usable frame, expected 2 or more: nothing to compare it with")
    pairs, views, rivals = pairs_of(scene, strides), Views(scene), Rivals(scene.has_depth)
    tried = set(np.random.default_rng(0).permutation(len(pairs))[:TRIED].tolist())
    found, depths = [], []
    for number, (first, second, stride) in enumerate(pairs):
        sides = views(first), views(second)
        if None not in sides:
            figures, rival = (_compare_depth, _find_depth) if scene.has_depth else (_compare_lines, _find_on_lines)
            found.append(PairCheck(first, second, stride, **figures(*sides, scene.metric)))
            if number in tried:
                rivals.add(*rival(*sides, rivals.combinations))
            if scene.has_depth:
                depths.append(sides[0].frame.depth[::8, ::8].ravel())
        advance(number + 1, len(pairs))
    sample = views.sample or next((view.frame for view in map(views, range(len(scene))) if view), None)
    if sample is None:
        raise InputError(f"{scene.name}: not one of {len(scene)} frames can be read; the last: {views.error}")
    return _summary(scene, sample, len(views.unreadable), found, np.concatenate([*depths, np.zeros(0)]),
                    judge(scene.has_depth, found, rivals))


def pairs_of(scene: PosedScene, strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """First and second frame and stride of the pairs to compare, by first frame.

    In a scene without order, each frame with the one that by its pose shares most with it; the stride is 0.
    """
    count = len(scene)
    if scene.ordered:
        return sorted((int(first), int(first) + stride, stride) for stride in strides if stride < count
                      for first in evenly(count - stride, PAIRS))
    chosen = evenly(count, 1000)
    overlap = pose_overlap(scene, chosen)
    overlap = np.minimum(overlap, overlap.T)
    np.fill_diagonal(overlap, -1)
    nearest = chosen[overlap.argmax(1)]
    return [(int(chosen[i]), int(nearest[i]), 0) for i in evenly(len(chosen), PAIRS) if count > 1]


class Rivals:
    """How well each of the conventions that numbers may have been given in explains what frames see.

    counts: of pixels, or matches, by convention: those that agree, those that could be compared, those there are, and
    those that would agree were both frames of one place (where the convention is of another unit; else 0).
    """

    def __init__(self, has_depth: bool) -> None:
        self.combinations = combinations(has_depth)
        self.counts = np.zeros((len(self.combinations), 4))

    def add(self, *counts: Sequence[int]) -> None:
        """Counts of one pair, by convention."""
        self.counts += counts

    def best(self) -> tuple[int, float, float]:
        """Number of the convention that explains far most, or 0; the share that agrees then, and as things are."""
        agreed, compared, there, still = self.counts.T
        found, shares = agreed / np.maximum(there, 1), agreed / np.maximum(compared, 1)
        found *= agreed > BETTER * still
        best = int(np.argmax(found >= NEARLY * found.max()))
        explains = found[best] > BETTER * found[0] and 1 - shares[best] < (1 - shares[0]) / 2
        return best if explains else 0, float(shares[best]), float(shares[0])


def judge(has_depth: bool, found: Sequence[PairCheck], rivals: Rivals) -> tuple[bool | None, str, str]:
    """Whether a scene's numbers fit together (None: nothing to tell by), a sentence, and the mistake that it names."""
    numbers, what, least = (("poses and depth", "co-visible pixels agree", AGREE) if has_depth
                            else ("poses and matches", "matches lie on their epipolar lines", ON_LINE))
    compared = sum(pair.compared for pair in found)
    best, share, given = rivals.best()
    if best:
        conventions = rivals.combinations[best]
        mistake = " and ".join(convention.name for convention in conventions)
        return False, (f"{numbers} do not agree: {given:.0%} of {what}; read as {mistake}, {share:.0%} would: "
                       f"{', and '.join(convention.advice for convention in conventions)}"), mistake
    if compared < FEWEST:
        return None, f"nothing to tell by: {compared} points could be compared in {len(found)} pairs of frames", ""
    agree = pooled(found)
    if agree >= least:
        return True, f"{numbers} agree: {agree:.0%} of {what}", ""
    return False, (f"{numbers} do not agree: {agree:.0%} of {what}, and no usual mistake explains it; look at the "
                   "pictures (--output) and at the intrinsics"), ""


def pooled(found: Sequence[PairCheck]) -> float:
    """Of all pixels, or matches, of pairs, the share that agrees; 0 where there are none."""
    agreed = sum(pair.agree * pair.compared for pair in found if pair.compared)
    return float(agreed / max(sum(pair.compared for pair in found), 1))


def _compare_depth(first: View, second: View, metric: bool) -> dict[str, float]:
    pixels = spread_pixels(*first.grey.shape, PIXELS)
    found = agreement(first.frame, second.frame, pixels, metric)
    compared, agree = int(found.covisible.sum()), found.agree
    x, y = found.pixels.pixels[agree].T
    u, v = np.rint(found.pixels.points[agree]).astype(int).T
    here, there = first.grey[y, x], second.grey[v, u]
    mixed = np.random.default_rng(0).permutation(there)
    grey, shuffled = (float(np.median(np.abs(here - levels))) if len(here) else np.nan for levels in (there, mixed))
    return {"compared": compared, "agree": agree.sum() / compared if compared else np.nan,
            "overlap": compared / max(len(agree), 1), "hidden": found.hidden.sum() / max(len(agree), 1), "grey": grey,
            "shuffled": shuffled}


def _compare_lines(first: View, second: View, metric: bool) -> dict[str, float]:
    distances = line_distances(fundamental_matrix(first.frame, second.frame), *matched_points(first, second))
    if not len(distances):
        return {"compared": 0, "agree": np.nan}
    return {"compared": len(distances), "agree": (distances < NEAR_LINE).mean(), "distance": np.median(distances)}


def _find_depth(first: View, second: View, ways: Sequence) -> list[tuple[int, int, int, int]]:
    """Rivals' counts of pixels; their depth agrees up to a share of it."""
    pixels, counts = spread_pixels(*first.thumbnail.image.shape[:2], FEW_PIXELS), []
    still: dict[tuple[Convention, ...], int] = {}  # without motion no unit matters, and those without one come first
    for way in ways:
        frames = [read_as(view.thumbnail, way) for view in (first, second)]
        there = reproject(*frames, pixels)
        agree, plain = _agree(there), tuple(convention for convention in way if convention not in UNITS)
        if way == plain:
            still[plain] = _agree(reproject(frames[0], from_one_place(*frames), pixels)).sum()
        counts.append((agree.sum(), (there.seen > 0).sum(), len(agree), 0 if way == plain else still[plain]))
    return counts


def _agree(there: Reprojected) -> np.ndarray:
    return (there.seen > 0) & (np.abs(there.depth - there.seen) <= SHARE * there.depth)


def _find_on_lines(first: View, second: View, ways: Sequence) -> list[tuple[int, int, int, int]]:
    """Rivals' counts of matches."""
    points, counts = matched_points(first, second), []
    for way in ways:
        fundamental = fundamental_matrix(*(read_as(view.frame, way) for view in (first, second)))
        distances = line_distances(fundamental, *points)
        counts.append(((distances < NEAR_LINE).sum(), len(distances), len(distances), 0))
    return counts


def matched_points(first: View, second: View) -> tuple[np.ndarray, np.ndarray]:
    """M×2 points of both frames, matched by SIFT: each other's nearest, and by far (ratio 0.8) nearer than the next."""
    matches = match(first.features, second.features, ratio=0.8)
    return first.features.keypoints[matches.query], second.features.keypoints[matches.train]


@functools.cache
def _sift():
    return load_extractor("sift", top_k=2000)


def _summary(
    scene: PosedScene, sample: PosedFrame, unreadable: int, found: Sequence[PairCheck], depths: np.ndarray,
    judged: tuple[bool | None, str, str],
) -> SceneCheck:
    known = depths[depths > 0]
    quantiles = np.quantile(known, (0.05, 0.5, 0.95)) if len(known) else np.full(3, np.nan)
    steps = np.linalg.norm(np.diff(scene.poses[:, :3, 3], axis=0), axis=1)
    (fx, _, cx), (_, fy, cy) = sample.intrinsics[:2].tolist()
    return SceneCheck(
        scene.name, len(scene), sample.image.shape[1::-1], (fx, fy, cx, cy), scene.metric, scene.ordered,
        scene.has_depth, float(steps.sum()), len(known) / len(depths) if len(depths) else np.nan,
        tuple(quantiles.tolist()), unreadable, tuple(found), *judged,
    )
