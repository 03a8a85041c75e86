"""How far a trajectory is from the truth: absolute error after alignment (by evo), and relative error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kp_frontend.errors import unknown_name
from kp_frontend.replay.association import nearest, period
from kp_frontend.replay.trajectory import Trajectory

ALIGNMENTS = ("se3", "sim3")
TOLERANCE = 20_000_000  # ns between a pose and its ground truth, as in TUM's tools
SECOND = 10**9  # ns
NAN = float("nan")


@dataclass(frozen=True)
class RelativeError:
    """Root mean squares over pairs of poses: translation in metres, rotation in degrees; nan without pairs."""

    translation: float = NAN
    rotation: float = NAN
    pairs: int = 0


@dataclass(frozen=True, eq=False)
class TrajectoryError:
    """Error of an estimated trajectory; metres unless said otherwise, nan where it cannot be had (see `reason`).

    alignment: ``se3`` (rotation and translation) or ``sim3`` (and scale), of all associated positions.
    scale: what the estimate was multiplied by.  poses: associated within 20 ms.
    path: length of the ground truth over the estimate's time.  percent: rmse in % of it.
    per_frame, per_second: relative errors, the scale of the alignment applied.
    stamps, errors: of each associated pose, ns and metres.  truth: all of it over that time.  aligned: the estimate.
    """

    alignment: str
    scale: float = NAN
    poses: int = 0
    path: float = NAN
    rmse: float = NAN
    mean: float = NAN
    median: float = NAN
    max: float = NAN
    percent: float = NAN
    per_frame: RelativeError = RelativeError()
    per_second: RelativeError = RelativeError()
    reason: str = ""
    stamps: np.ndarray | None = None
    errors: np.ndarray | None = None
    aligned: Trajectory | None = None
    truth: Trajectory | None = None


def evaluate(estimate: Trajectory, truth: Trajectory, alignment: str) -> TrajectoryError:
    """Error of `estimate` against `truth`, matched by stamp and aligned over all matched positions (Umeyama)."""
    if alignment not in ALIGNMENTS:
        raise unknown_name("alignment", alignment, ALIGNMENTS)
    found = nearest(truth.stamps, estimate.stamps, TOLERANCE)
    matched = estimate.select(found >= 0)
    reference = Trajectory(matched.stamps, truth.poses[found[found >= 0]], truth.oriented)
    if len(matched) < 3:
        reason = f"{len(matched)} of {len(estimate)} poses have ground truth within 20 ms, expected at least 3"
        return TrajectoryError(alignment, poses=len(matched), reason=reason)
    covered = (truth.stamps >= matched.stamps[0] - TOLERANCE) & (truth.stamps <= matched.stamps[-1] + TOLERANCE)
    covered_truth = truth.select(covered)
    aligned, scale, errors, reason = _align(matched, reference, alignment)
    if aligned is None:
        path = covered_truth.length
        return TrajectoryError(alignment, poses=len(matched), path=path, reason=reason, truth=covered_truth)
    rmse = float(np.sqrt(np.mean(errors**2)))
    step = period(estimate.stamps)
    frame = relative_error(aligned, reference, step, step // 2)
    second = relative_error(aligned, reference, SECOND, min(step // 2, SECOND // 10))
    absent = [what for what, error in (("one frame", frame), ("one second (± 10 %)", second)) if not error.pairs]
    if not truth.oriented:
        reason = "ground truth has positions only: no relative error"
    elif absent:
        reason = f"no two poses are {' or '.join(absent)} apart: no relative error there"
    return TrajectoryError(
        alignment, scale, len(matched), covered_truth.length, rmse,
        float(errors.mean()), float(np.median(errors)), float(errors.max()),
        100 * rmse / covered_truth.length if covered_truth.length > 0 else NAN,
        frame, second, reason, matched.stamps, errors, aligned, covered_truth,
    )


def _align(
    estimate: Trajectory, reference: Trajectory, alignment: str
) -> tuple[Trajectory | None, float, np.ndarray, str]:
    """Aligned estimate (None with a reason where alignment is not unique), scale, and position errors in metres."""
    from evo.core.geometry import GeometryException
    from evo.core.metrics import APE, PoseRelation
    from evo.core.trajectory import PosePath3D

    moved, target = PosePath3D(poses_se3=list(estimate.poses)), PosePath3D(poses_se3=list(reference.poses))
    try:
        scale = float(moved.align(target, correct_scale=alignment == "sim3")[2])
    except GeometryException as error:
        return None, NAN, np.zeros(0), f"alignment is not unique, the positions lie on a line or a point ({error})"
    metric = APE(PoseRelation.translation_part)
    metric.process_data((target, moved))
    return Trajectory(estimate.stamps, np.array(moved.poses_se3)), scale, np.asarray(metric.error), ""


def relative_error(estimate: Trajectory, reference: Trajectory, distance: int, tolerance: int) -> RelativeError:
    """Error of the motion between poses that are `distance` ± `tolerance` nanoseconds apart.

    Both trajectories have the same stamps.  E = (Q_i⁻¹ Q_j)⁻¹ (P_i⁻¹ P_j) of Sturm et al., "A benchmark for the
    evaluation of RGB-D SLAM systems", over every such pair, so that a gap in the estimate is no pair; nor is a pose
    with itself.
    """
    second = nearest(estimate.stamps, estimate.stamps + distance, tolerance)
    first = np.flatnonzero(second > np.arange(len(second)))
    second = second[first]
    if not len(first) or not reference.oriented:
        return RelativeError()
    inverse = np.linalg.inv
    moved = inverse(estimate.poses[first]) @ estimate.poses[second]
    wanted = inverse(reference.poses[first]) @ reference.poses[second]
    error = inverse(wanted) @ moved
    sine = np.linalg.norm(error[:, [2, 0, 1], [1, 2, 0]] - error[:, [1, 2, 0], [2, 0, 1]], axis=1) / 2
    angles = np.degrees(np.arctan2(sine, (np.trace(error[:, :3, :3], axis1=1, axis2=2) - 1) / 2))
    translations = np.linalg.norm(error[:, :3, 3], axis=1)
    return RelativeError(float(np.sqrt(np.mean(translations**2))), float(np.sqrt(np.mean(angles**2))), len(first))
