"""The named protocols of relative pose (EVALUATION.md sections 1 D and 3), so that their figures never mix.

- ``shared`` (ours): images as they are, the best 1000 points; a translation that points the wrong way is wrong.
- ``scannet``, ``yfcc``, ``megadepth``: the size and points of SuperPoint in the papers (SiLK has 20,000 points, and
  ``yfcc`` at 1600); a translation's sign does not count.  Theirs is OpenCV's estimator; PoseLib's figures are higher
  (trap 6).
- ``scannet_refined``: pairs with a translation of at most .15 m are judged by their rotation alone.

All match mutual neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kp_frontend.errors import InputError, unknown_name
from kp_training.evaluation.relative_pose.solvers import SOLVERS
from kp_training.evaluation.sequences import FULL, Size

THRESHOLDS = (1, 5, 10, 20)
"""Degrees up to which the area under the curve is taken."""
PIXELS, NORMALISED = "P@1px", "P@5e-4"


@dataclass(frozen=True)
class PosePreset:
    """A named protocol.

    size, top_k: of images and of points in each.  folded: see `direction_error`.
    still: translation up to which a pair is judged by its rotation alone, in the unit of the poses.
    precision: the share of matches that the table shows: both points within 1 px of their epipolar lines, or as the
    papers measure it.
    """

    size: Size = FULL
    top_k: int = 1000
    folded: bool = True
    still: float = 0.0
    precision: str = NORMALISED


PRESETS = {
    "shared": PosePreset(folded=False, precision=PIXELS),
    "scannet": PosePreset(Size(640, 480), 1024),
    "scannet_refined": PosePreset(Size(640, 480), 1024, still=0.15),
    "yfcc": PosePreset(Size(long=1200), 2048),
    "megadepth": PosePreset(Size(long=1600), 2048),
}


@dataclass(frozen=True)
class PoseSetting:
    """A preset as it is run.

    repeats: attempts of every estimator with the seeds `seed`, `seed` + 1 …; figures are averages over them.
    changed: what differs from the protocol, for the title.
    """

    preset: str
    size: Size
    top_k: int
    solvers: tuple[str, ...]
    repeats: int = 3
    seed: int = 0
    changed: str = ""

    @property
    def protocol(self) -> PosePreset:
        return PRESETS[self.preset]

    def __str__(self) -> str:
        changed = f" ({self.changed}: not as published)" if self.changed else ""
        return f"preset {self.preset}, {self.size}, {self.top_k} points{changed}, mutual neighbours"

    def estimators(self) -> str:
        """What estimates the poses, with versions and seeds."""
        seeds = f"seeds {self.seed} to {self.seed + self.repeats - 1}, averaged" if self.repeats > 1 else (
            f"seed {self.seed}")
        return "; ".join([*(f"{name} = {SOLVERS[name]}" for name in self.solvers), seeds])


def choose_pose_setting(
    preset: str, size: Size | None = None, top_k: int | None = None, solvers: Sequence[str] = tuple(SOLVERS),
    repeats: int = 3, seed: int = 0,
) -> PoseSetting:
    """`preset` as published, or with what is given; InputError for what cannot be."""
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    for solver in solvers:
        if solver not in SOLVERS:
            raise unknown_name("solver", solver, SOLVERS)
    for option, value in (("--top-k", top_k), ("--repeats", repeats)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: expected at least 1")
    protocol = PRESETS[preset]
    chosen = size or protocol.size, top_k or protocol.top_k
    changes = []
    if preset not in PUBLISHED or all(chosen != row.setting for row in PUBLISHED[preset].rows.values()):
        changes += [f"--size {size}"] * (chosen[0] != protocol.size)
        changes += [f"--top-k {top_k}"] * (chosen[1] != protocol.top_k)
    return PoseSetting(preset, *chosen, tuple(dict.fromkeys(solvers)), repeats, seed, ", ".join(changes))


class Row(NamedTuple):
    """AUC@5, @10 and @20 in percent, and the size of images and number of points that they are of."""

    setting: tuple[Size, int]
    figures: tuple[float, float, float]


@dataclass(frozen=True)
class PublishedPoses:
    """What a paper prints for a preset: name → row.  pairs: of its list."""

    source: str
    pairs: int
    rows: Mapping[str, Row]


def _prp(
    pairs: int, superpoint: tuple[Size, int], silk: tuple[Size, int], *figures: tuple[float, float, float]
) -> PublishedPoses:
    settings = {"SuperPoint (PrP)": superpoint, "Hyb": superpoint, "SuperPoint-PrP": superpoint, "SiLK": silk,
                "SiLK-PrP": silk, "Aug": silk}
    return PublishedPoses("PrP", pairs, {name: Row(settings[name], row) for name, row in zip(settings, figures)})


PUBLISHED = {
    "scannet": _prp(1500, (Size(640, 480), 1024), (Size(640, 480), 20_000),
                    (7.56, 17.76, 30.43), (7.82, 17.85, 31.08), (7.73, 17.72, 30.71),
                    (7.18, 16.14, 27.84), (9.42, 20.17, 32.31), (9.60, 20.75, 34.24)),
    "yfcc": _prp(4000, (Size(long=1200), 2048), (Size(long=1600), 20_000),
                 (12.01, 22.66, 35.48), (14.04, 26.53, 40.80), (12.57, 23.86, 37.88),
                 (7.82, 15.05, 24.93), (9.44, 17.31, 27.04), (7.82, 14.33, 22.52)),
    "megadepth": _prp(1500, (Size(long=1600), 2048), (Size(long=1600), 20_000),
                      (25.21, 39.42, 52.11), (27.34, 42.64, 56.03), (26.17, 41.53, 55.87),
                      (22.70, 35.32, 48.08), (25.91, 35.50, 46.41), (24.79, 34.38, 45.00)),
}


def published_poses(setting: PoseSetting, pairs: int) -> dict[str, tuple[float, ...]]:
    """Name → AUC@5, @10, @20 as shares, where preset, size, points and number of pairs are those of the paper."""
    table = PUBLISHED.get(setting.preset)
    if table is None or table.pairs != pairs:
        return {}
    return {name: tuple(value / 100 for value in row.figures) for name, row in table.rows.items()
            if row.setting == (setting.size, setting.top_k)}
