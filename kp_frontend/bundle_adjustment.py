"""Non-linear refinement of poses and points: one frame against known points, or a window of keyframes with theirs.

Residuals are in standard deviations: reprojection in ray pixels (see geometry), and inverse depth where a sensor gave
depth (inverse, because the error of a range camera or a stereo pair is nearly constant there). Both have a Cauchy loss.
A pose changes by exp(twist)·pose, so its twist (translation, rotation) lives in the camera's own frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kp_frontend.geometry import se3_exp, skew, transform

# standard deviations at which the Cauchy loss gives half weight, for (x, y) together and for inverse depth
LOSS_SCALES = np.array([1.5, 1.0])


@dataclass(frozen=True, eq=False)
class Observations:
    """What cameras saw, one row a sighting.

    rays: O×2 ray pixels.  ray_sigmas: O, their standard deviation in pixels.
    inverse_depths: O, 1/metres, nan = unknown.  inverse_depth_sigmas: O, 1/metres.
    """

    rays: np.ndarray
    ray_sigmas: np.ndarray
    inverse_depths: np.ndarray
    inverse_depth_sigmas: np.ndarray

    def select(self, which: np.ndarray) -> Observations:
        """Rows `which` (indices or a boolean mask)."""
        return Observations(
            self.rays[which], self.ray_sigmas[which], self.inverse_depths[which], self.inverse_depth_sigmas[which]
        )

    @classmethod
    def concatenate(cls, parts: list[Observations]) -> Observations:
        """All rows of `parts`, in order."""
        names = ("rays", "ray_sigmas", "inverse_depths", "inverse_depth_sigmas")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def residuals(local: np.ndarray, seen: Observations, focal: float) -> np.ndarray:
    """O×3 residuals (x, y, inverse depth) of points `local` (O×3, camera frame); 0 where depth is unknown."""
    depth = np.maximum(local[:, 2], 1e-6)
    values = np.empty((len(local), 3))
    values[:, :2] = (local[:, :2] * (focal / depth)[:, None] - seen.rays) / seen.ray_sigmas[:, None]
    with np.errstate(invalid="ignore"):
        values[:, 2] = np.nan_to_num((1 / depth - seen.inverse_depths) / seen.inverse_depth_sigmas)
    values[local[:, 2] <= 1e-6, :2] = 1e3  # behind the camera: wrong, whatever its pixels say
    return values


def _point_jacobian(local: np.ndarray, seen: Observations, focal: float) -> np.ndarray:
    """O×3×3 derivatives of `residuals` by the point in the camera frame."""
    depth = np.maximum(local[:, 2], 1e-6)
    scale = focal / depth / seen.ray_sigmas
    jacobian = np.zeros((len(local), 3, 3))
    jacobian[:, 0, 0] = jacobian[:, 1, 1] = scale
    jacobian[:, :2, 2] = -local[:, :2] * (scale / depth)[:, None]
    known = np.isfinite(seen.inverse_depths)
    jacobian[known, 2, 2] = -1 / (depth[known] ** 2 * seen.inverse_depth_sigmas[known])
    return jacobian


def _pose_jacobian(local: np.ndarray, by_point: np.ndarray) -> np.ndarray:
    """O×3×6 derivatives of `residuals` by the twist of the pose."""
    return np.concatenate([by_point, -by_point @ skew(local)], axis=2)


def _robust(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Square roots of the weights (O×3) of `residuals`, and the cost, under a Cauchy loss."""
    sizes = np.column_stack([np.hypot(values[:, 0], values[:, 1]), values[:, 2]])
    ratios = 1 + np.square(sizes / LOSS_SCALES)
    cost = (np.square(LOSS_SCALES) * np.log(ratios)).sum()
    return (1 / np.sqrt(ratios))[:, (0, 0, 1)], float(cost)


def refine_pose(
    pose: np.ndarray, points: np.ndarray, seen: Observations, focal: float, iterations: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """camera_from_world that fits world `points` (O×3) to what was seen, from a near `pose`; and its 6×6 covariance.

    Gauss-Newton. The covariance is of the twist (metres, radians; camera frame), nan where the problem is singular.
    """
    hessian = np.zeros((6, 6))
    for _ in range(iterations):
        local = transform(pose, points)
        values = residuals(local, seen, focal)
        weights, _cost = _robust(values)
        jacobian = (_pose_jacobian(local, _point_jacobian(local, seen, focal)) * weights[..., None]).reshape(-1, 6)
        hessian = jacobian.T @ jacobian
        step = -np.linalg.solve(hessian + 1e-9 * np.trace(hessian) * np.eye(6), jacobian.T @ (values * weights).ravel())
        pose = se3_exp(step) @ pose
        if np.abs(step).max() < 1e-6:
            break
    regular = np.linalg.cond(hessian) < 1e14
    return pose, np.linalg.inv(hessian) if regular else np.full((6, 6), np.nan)


@dataclass(frozen=True, eq=False)
class Problem:
    """A bundle of keyframes and points.

    poses: K×4×4 camera_from_world.  fixed: K bool.  points: M×3 world.
    cameras, landmarks: O, which pose and which point each sighting is of; no pair twice.
    """

    poses: np.ndarray
    fixed: np.ndarray
    points: np.ndarray
    cameras: np.ndarray
    landmarks: np.ndarray
    seen: Observations
    focal: float

    def local(self, poses: np.ndarray, points: np.ndarray) -> np.ndarray:
        """O×3 points in the frames of the cameras that saw them."""
        turned = np.einsum("oij,oj->oi", poses[self.cameras, :3, :3], points[self.landmarks])
        return turned + poses[self.cameras, :3, 3]

    def sorted(self) -> Problem:
        """The same problem with its sightings in the order of the landmarks."""
        order = np.argsort(self.landmarks, kind="stable")
        return replace(
            self, cameras=self.cameras[order], landmarks=self.landmarks[order], seen=self.seen.select(order)
        )


def adjust(problem: Problem, iterations: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Poses and points after bundle adjustment by Levenberg-Marquardt with the Schur complement of the points."""
    problem = problem.sorted()
    poses, points, damping = problem.poses, problem.points, 1e-4
    _, cost = _robust(residuals(problem.local(poses, points), problem.seen, problem.focal))
    system = None
    for _ in range(iterations):
        system = system or _normal_equations(problem, poses, points)
        twists, shifts = _solve(system, damping)
        trial_poses = poses.copy()
        trial_poses[~problem.fixed] = se3_exp(twists) @ poses[~problem.fixed]
        trial_points = points + shifts
        _, trial = _robust(residuals(problem.local(trial_poses, trial_points), problem.seen, problem.focal))
        if trial < cost:
            converged = cost - trial < 1e-3 * cost
            poses, points, cost, damping, system = trial_poses, trial_points, trial, damping / 10, None
            if converged:
                break
        else:
            damping *= 10
    return poses, points


@dataclass(frozen=True, eq=False)
class _System:
    """Blocks of the Hessian and of the gradient, for F free poses and M points.

    poses: F×6×6.  pose_gradient: F×6.  points: M×3×3.  point_gradient: M×3.  mixed: 3×F×6×M.
    """

    poses: np.ndarray
    pose_gradient: np.ndarray
    points: np.ndarray
    point_gradient: np.ndarray
    mixed: np.ndarray


def _normal_equations(problem: Problem, poses: np.ndarray, points: np.ndarray) -> _System:
    """Normal equations at `poses` and `points`; the sightings of `problem` are in the order of the landmarks."""
    local = problem.local(poses, points)
    weights, _ = _robust(values := residuals(local, problem.seen, problem.focal))
    values = (values * weights)[..., None]
    by_local = _point_jacobian(local, problem.seen, problem.focal) * weights[..., None]
    by_point = by_local @ poses[problem.cameras, :3, :3]
    present, starts = np.unique(problem.landmarks, return_index=True)
    point_t = np.swapaxes(by_point, 1, 2)
    point_hessian, point_gradient = np.zeros((len(points), 3, 3)), np.zeros((len(points), 3))
    point_hessian[present] = np.add.reduceat(point_t @ by_point, starts)
    point_gradient[present] = np.add.reduceat((point_t @ values)[..., 0], starts)

    free = np.cumsum(~problem.fixed) - 1
    moving = np.flatnonzero(~problem.fixed[problem.cameras])
    cameras, count = free[problem.cameras[moving]], free[-1] + 1
    by_pose = _pose_jacobian(local[moving], by_local[moving])
    pose_hessian, pose_gradient = np.empty((count, 6, 6)), np.empty((count, 6))
    for camera in range(count):  # one product of tall matrices beats many of small ones
        tall = by_pose[cameras == camera].reshape(-1, 6)
        pose_hessian[camera] = tall.T @ tall
        pose_gradient[camera] = tall.T @ values[moving[cameras == camera]].ravel()
    mixed = np.zeros((3, count, 6, len(points)))
    mixed[:, cameras, :, problem.landmarks[moving]] = point_t[moving] @ by_pose
    return _System(pose_hessian, pose_gradient, point_hessian, point_gradient, mixed)


def _solve(system: _System, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Twists of the free poses (F×6) and shifts of the points (M×3) of one damped step."""
    free, count = len(system.poses), len(system.points)
    inverse = np.linalg.inv(_damped(system.points, damping))
    mixed = system.mixed.reshape(3, 6 * free, count)
    weighted = [sum(mixed[i] * inverse[:, i, j] for i in range(3)) for j in range(3)]
    reduced = -sum(weighted[j] @ mixed[j].T for j in range(3))
    blocks = reduced.reshape(free, 6, free, 6)
    blocks[np.arange(free), :, np.arange(free)] += _damped(system.poses, damping)
    gradient = system.pose_gradient.ravel() - sum(weighted[j] @ system.point_gradient[:, j] for j in range(3))
    twists = -np.linalg.solve(reduced, gradient)
    back = system.point_gradient + (twists @ mixed).T
    return twists.reshape(free, 6), -np.einsum("mij,mj->mi", inverse, back)


def _damped(blocks: np.ndarray, damping: float) -> np.ndarray:
    """Blocks (n×s×s) with their diagonals grown by a share, and never singular."""
    diagonal = np.arange(blocks.shape[1])
    grown = blocks.copy()
    grown[:, diagonal, diagonal] = blocks[:, diagonal, diagonal] * (1 + damping) + 1e-9
    return grown
