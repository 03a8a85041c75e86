"""The named protocols: each with its own images, budget of points and metrics, so that their figures never mix.

- ``shared`` (ours): the best `top_k` of each image, mutual neighbours among all of them; repeatability of those that
  the other image shows; M.Score = correct matches over the least number of such points.  Distances are in pixels of
  the image that a point is warped into.
- ``kp2d``: EVALUATION.md section A.  Repeatability and corner errors keep what the other image shows and then the best
  `top_k` of it; M.Score takes the best `top_k` of all, one-way neighbours, and counts those that are visible.
- ``silk``: section B.  `top_k` first, then the shared view; ε of 3 and 5 pixels; grey images, short side 480.
- ``d2net``: section C.  MMA for 1 to 10 pixels at full resolution, on HPatches without eight of its sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from kp_frontend.errors import InputError
from kp_training.evaluation.metrics import (
    Side,
    accuracy,
    corner_error,
    matched,
    one_way_score,
    repeatability,
    shared,
)
from kp_training.evaluation.sequences import FULL, Loading, Size

CURVE = tuple(range(1, 11))
CORNER_ERRORS = (1, 3, 5)
EPSILONS = (3, 5)
POOL = 10
"""KP2D chooses among all points; an extractor is asked for this many times `top_k`."""
D2NET_LEFT_OUT = frozenset({
    "i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent",
})


def score_shared(side0: Side, side1: Side, homography: np.ndarray, top_k: int) -> dict[str, float]:
    """The ``shared`` preset's metrics of one pair."""
    all0, all1 = side0.features.top_k(top_k), side1.features.top_k(top_k)
    kept0 = shared(all0, homography, side1.shape)
    kept1 = shared(all1, np.linalg.inv(homography), side0.shape)
    repeated, location = repeatability(kept0.keypoints, kept1.keypoints, homography)
    pairs = matched(all0, all1, homography)
    points = min(len(kept0), len(kept1))
    error = corner_error(pairs, homography, side0.shape)
    return {
        "Rep": repeated, "LE": location, **accuracy(pairs.errors, CURVE),
        "M.Score": float((pairs.errors <= 3).sum()) / points if points else 0.0,
        **{f"Cor-{limit}": float(error <= limit) for limit in CORNER_ERRORS},
        "matches": float(len(pairs)), "points": float(points),
    }


def score_kp2d(side0: Side, side1: Side, homography: np.ndarray, top_k: int) -> dict[str, float]:
    """The ``kp2d`` preset's metrics of one pair (section A; borders as in the authors' code)."""
    inverse = np.linalg.inv(homography)
    kept0 = shared(side0.features, homography, side1.shape, margin=1).top_k(top_k)
    kept1 = shared(side1.features, inverse, side0.shape, margin=1).top_k(top_k)
    repeated, location = repeatability(kept0.keypoints, kept1.keypoints, homography, one_frame=True)
    pairs = matched(kept0, kept1, homography)
    all0, all1 = side0.features.top_k(top_k), side1.features.top_k(top_k)
    ways = (one_way_score(all0, all1, inverse, side0.shape), one_way_score(all1, all0, homography, side1.shape))
    error = corner_error(pairs, homography, side0.shape)
    return {
        "Rep": repeated, "LE": location, "M.Score": float(np.mean(ways)),
        **{f"Cor-{limit}": float(error <= limit) for limit in CORNER_ERRORS},
        "matches": float(len(pairs)), "points": float(min(len(kept0), len(kept1))),
    }


def score_silk(side0: Side, side1: Side, homography: np.ndarray, top_k: int) -> dict[str, float]:
    """The ``silk`` preset's metrics of one pair (section B).

    HAUC@ε, the area under recall over error up to ε divided by ε, is the mean over pairs of max(0, 1 − error / ε);
    a failure, which the protocol gives the error ε + 1, has 0.
    """
    all0, all1 = side0.features.top_k(top_k), side1.features.top_k(top_k)
    kept0 = shared(all0, homography, side1.shape).keypoints
    kept1 = shared(all1, np.linalg.inv(homography), side0.shape).keypoints
    pairs = matched(all0, all1, homography)
    error = corner_error(pairs, homography, side0.shape, iterations=2000)
    detected = (len(all0) + len(all1)) / 2
    return {
        **{f"Rep@{limit}": repeatability(kept0, kept1, homography, one_frame=True, radius=limit)[0]
           for limit in EPSILONS},
        **{f"HAcc@{limit}": float(error <= limit) for limit in EPSILONS},
        **{f"HAUC@{limit}": max(0.0, 1 - error / limit) for limit in EPSILONS},
        **accuracy(pairs.errors, CURVE),
        # The paper prints one figure for both ε and names no image: 3 px, and the mean of both images' points.
        "MS": float((pairs.errors <= 3).sum()) / detected if detected else 0.0,
        "matches": float(len(pairs)), "points": detected,
    }


def score_d2net(side0: Side, side1: Side, homography: np.ndarray, top_k: int) -> dict[str, float]:
    """The ``d2net`` preset's metrics of one pair (section C): MMA@1 to @10 and their weighted mean."""
    pairs = matched(side0.features.top_k(top_k), side1.features.top_k(top_k), homography)
    curve = accuracy(pairs.errors, CURVE)
    weights = 2 - 0.1 * np.array(CURVE)
    return {
        "MMAscore": float(weights @ list(curve.values()) / weights.sum()), **curve,
        "matches": float(len(pairs)), "points": float(min(len(side0.features), len(side1.features), top_k)),
    }


@dataclass(frozen=True)
class Preset:
    """A named protocol.

    score: metrics of one pair.  budgets: image size → every top_k of the papers, the defaults first.
    columns: what the table shows.  rank: the metric that names the worst pairs.
    pool: points asked of the extractor, times `top_k`.  plain_scaling, gray: see Loading.
    blue_first: networks for colour images get blue where they expect red.
    left_out: names of sequences that are not scored.
    """

    score: Callable[[Side, Side, np.ndarray, int], dict[str, float]]
    budgets: Mapping[Size, tuple[int, ...]]
    columns: tuple[str, ...]
    rank: str
    pool: int = 1
    plain_scaling: bool = False
    gray: bool = False
    blue_first: bool = False
    left_out: frozenset[str] = field(default_factory=frozenset)


PRESETS = {
    "shared": Preset(
        score_shared, {Size(640, 480): (1000,)}, rank="M.Score",
        columns=("Rep", "LE", "MMA@1", "MMA@3", "MMA@5", "M.Score", "Cor-1", "Cor-3", "Cor-5", "matches"),
    ),
    "kp2d": Preset(
        score_kp2d, {Size(320, 240): (300,), Size(640, 480): (1000,)}, rank="M.Score",
        columns=("Rep", "LE", "M.Score", "Cor-1", "Cor-3", "Cor-5", "matches", "points"),
        pool=POOL, plain_scaling=True, blue_first=True,
    ),
    "silk": Preset(
        score_silk, {Size(short=480): (1000, 10_000)}, rank="MS", gray=True,
        columns=("Rep@3", "Rep@5", "HAcc@3", "HAcc@5", "HAUC@3", "HAUC@5", "MMA@3", "MMA@5", "MS", "matches", "points"),
    ),
    "d2net": Preset(
        score_d2net, {FULL: (8192,)}, rank="MMAscore", left_out=D2NET_LEFT_OUT,
        columns=("MMAscore", "MMA@1", "MMA@2", "MMA@3", "MMA@5", "MMA@10", "matches", "points"),
    ),
}


@dataclass(frozen=True)
class Setting:
    """A preset at one image size and number of points.  changed: what differs from the protocol, for the title."""

    preset: str
    size: Size
    top_k: int
    changed: str = ""

    @property
    def protocol(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def loading(self) -> Loading:
        return Loading(self.size, self.protocol.plain_scaling, self.protocol.gray)

    def __str__(self) -> str:
        changed = f" ({self.changed}: not as published)" if self.changed else ""
        return f"preset {self.preset}, {self.size}, {self.top_k} points{changed}"


def choose_setting(preset: str, size: Size | None = None, top_k: int | None = None) -> Setting:
    """`preset` at its own size and points, or at those given; InputError for `top_k` below 1."""
    budgets = PRESETS[preset].budgets
    if top_k is not None and top_k < 1:
        raise InputError(f"--top-k {top_k}: expected at least 1")
    chosen = next(iter(budgets)) if size is None else size
    usual = budgets.get(chosen, next(iter(budgets.values())))
    changes = [f"--size {chosen}"] * (chosen not in budgets) + [f"--top-k {top_k}"] * (top_k not in (None, *usual))
    return Setting(preset, chosen, usual[0] if top_k is None else top_k, ", ".join(changes))
