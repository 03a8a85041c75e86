"""Poses, depths and points: what odometry is made of.

A pose is 4×4 float64, ``target_from_source``. Image points are in "ray pixels": undistorted, relative to the principal
point, in units of a focal length (x/z · focal), so that thresholds are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`points` (…×3) in the target frame of `pose`."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def invert(poses: np.ndarray) -> np.ndarray:
    """Inverse of rigid poses (…×4×4)."""
    inverse = np.zeros_like(poses)
    inverse[..., :3, :3] = np.swapaxes(poses[..., :3, :3], -1, -2)
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", inverse[..., :3, :3], poses[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse


def skew(vectors: np.ndarray) -> np.ndarray:
    """Cross-product matrices (…×3×3) of `vectors` (…×3)."""
    matrix = np.zeros((*vectors.shape, 3))
    x, y, z = np.moveaxis(vectors, -1, 0)
    matrix[..., 0, 1], matrix[..., 0, 2], matrix[..., 1, 2] = -z, y, -x
    matrix[..., 1, 0], matrix[..., 2, 0], matrix[..., 2, 1] = z, -y, x
    return matrix


def so3_exp(vectors: np.ndarray) -> np.ndarray:
    """Rotations (…×3×3) of rotation vectors (…×3, radians)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    small = angle < 1e-6
    safe = np.where(small, 1, angle)
    first = np.where(small, 1 - angle**2 / 6, np.sin(safe) / safe)
    second = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    cross = skew(vectors)
    return np.eye(3) + first * cross + second * (cross @ cross)


def so3_log(rotations: np.ndarray) -> np.ndarray:
    """Rotation vectors (…×3, radians, length ≤ π) of rotations (…×3×3); through quaternions, so exact near π too."""
    trace = np.trace(rotations, axis1=-2, axis2=-1)
    diagonal = np.diagonal(rotations, axis1=-2, axis2=-1)
    # row k of this symmetric matrix is 4·q_k·(w, x, y, z): take the row of the largest component
    outer = np.zeros((*rotations.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1 + trace
    off = [rotations[..., i, j] for i, j in ((2, 1), (0, 2), (1, 0))]
    mirrored = [rotations[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))]
    for k in range(3):
        outer[..., k + 1, k + 1] = 1 + 2 * diagonal[..., k] - trace
        outer[..., 0, k + 1] = outer[..., k + 1, 0] = off[k] - mirrored[k]
    for a, b, k in ((1, 2, 2), (1, 3, 1), (2, 3, 0)):
        outer[..., a, b] = outer[..., b, a] = off[k] + mirrored[k]
    largest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    quaternion = np.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., :1])
    return quaternion[..., 1:] * np.where(sine < 1e-12, 2, angle / np.maximum(sine, 1e-12))


def _left_jacobian(vectors: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    small = angle < 1e-4
    safe = np.where(small, 1, angle)
    first = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    second = np.where(small, 1 / 6 - angle**2 / 120, (safe - np.sin(safe)) / safe**3)
    cross = skew(vectors)
    return np.eye(3) + first * cross + second * (cross @ cross)


def se3_exp(twists: np.ndarray) -> np.ndarray:
    """Poses (…×4×4) of twists (…×6: translation part, then rotation vector)."""
    poses = np.zeros((*twists.shape[:-1], 4, 4))
    poses[..., :3, :3] = so3_exp(twists[..., 3:])
    poses[..., :3, 3] = np.einsum("...ij,...j->...i", _left_jacobian(twists[..., 3:]), twists[..., :3])
    poses[..., 3, 3] = 1
    return poses


def se3_log(poses: np.ndarray) -> np.ndarray:
    """Twists (…×6) of poses (…×4×4); inverse of `se3_exp` for rotations below π."""
    rotation = so3_log(poses[..., :3, :3])
    translation = np.linalg.solve(_left_jacobian(rotation), poses[..., :3, 3, None])[..., 0]
    return np.concatenate([translation, rotation], axis=-1)


def depth_at(depth: np.ndarray, keypoints: np.ndarray, radius: int = 1, edge: float = 0.05) -> np.ndarray:
    """Depth (N float32, metres) at `keypoints` (N×2 pixels) of `depth` (H×W, metres; 0, nan, inf or less = unknown).

    Median of the known values in 3×3 round the keypoint. nan where half of the values within `radius` pixels (at
    least 1) are unknown, or where they spread by more than `edge` of the depth: there foreground and background meet.
    """
    height, width = depth.shape
    x, y = np.rint(keypoints).astype(np.int64).reshape(-1, 2).T
    steps = np.arange(-radius, radius + 1)
    rows = np.clip(y[:, None, None] + steps[:, None], 0, height - 1)
    columns = np.clip(x[:, None, None] + steps, 0, width - 1)
    values = depth[rows, columns].astype(np.float32)
    values[~(np.isfinite(values) & (values > 0))] = np.nan
    known = np.isfinite(values)
    middle = values[:, radius - 1 : radius + 2, radius - 1 : radius + 2].reshape(-1, 9)
    usable = (known.mean(axis=(1, 2)) > 0.5) & np.isfinite(middle).any(axis=1)
    usable &= (x >= 0) & (y >= 0) & (x < width) & (y < height)
    result = np.full(len(values), np.nan, np.float32)
    result[usable] = np.nanmedian(middle[usable], axis=1)
    with np.errstate(invalid="ignore"):
        spread = np.fmax.reduce(values, axis=(1, 2)) - np.fmin.reduce(values, axis=(1, 2))
        result[~(spread <= edge * result)] = np.nan
    return result


def disparity_to_depth(disparity: np.ndarray, focal: float, baseline: float) -> np.ndarray:
    """Depth (N float32, metres) of disparities (N pixels); nan where they are unknown or not above 0.

    focal: pixels.  baseline: metres between the two cameras.
    """
    known = np.isfinite(disparity) & (disparity > 0)
    return np.where(known, focal * baseline / np.where(known, disparity, 1), np.nan).astype(np.float32)


def unproject(rays: np.ndarray, depths: np.ndarray, focal: float) -> np.ndarray:
    """Points (N×3, camera frame) at `depths` (N, along z) on ray pixels `rays` (N×2)."""
    return np.column_stack([rays / focal, np.ones(len(rays))]) * np.asarray(depths, np.float64)[:, None]


def triangulate(
    first: np.ndarray, second: np.ndarray, rays_first: np.ndarray, rays_second: np.ndarray, focal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N×3, world) seen from two cameras, and the angle (N, radians) between their rays.

    first, second: camera_from_world, one pose (4×4) or one a point (N×4×4).  rays_*: N×2 ray pixels.
    Linear (DLT) on normalised image points. A point behind a camera, or without a solution, is nan with angle 0.
    """
    count = len(rays_first)
    poses = [np.broadcast_to(pose, (count, 4, 4)) for pose in (first, second)]
    points = [rays / focal for rays in (rays_first, rays_second)]
    # x × (P X) = 0 with P = pose[:3], two rows a view, solved with X = (X, 1)
    rows = np.concatenate(
        [point[:, :, None] * pose[:, 2:3] - pose[:, :2] for pose, point in zip(poses, points)], axis=1
    )
    left, right = rows[:, :, :3], -rows[:, :, 3:]
    normal = np.swapaxes(left, 1, 2) @ left
    solvable = np.abs(np.linalg.det(normal)) > 1e-18
    normal[~solvable] = np.eye(3)
    world = np.linalg.solve(normal, np.swapaxes(left, 1, 2) @ right)[..., 0]
    towards = [
        np.einsum("nji,nj->ni", pose[:, :3, :3], np.column_stack([point, np.ones(count)]))
        for pose, point in zip(poses, points)
    ]
    cosine = np.sum(towards[0] * towards[1], axis=1) / np.prod([np.linalg.norm(ray, axis=1) for ray in towards], axis=0)
    angle = np.arccos(np.clip(cosine, -1, 1))
    heights = [np.einsum("ni,ni->n", pose[:, 2, :3], world) + pose[:, 2, 3] for pose in poses]
    good = solvable & (heights[0] > 0) & (heights[1] > 0)
    return np.where(good[:, None], world, np.nan), np.where(good, angle, 0)


def project(camera_from_world: np.ndarray, points: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Ray pixels (N×2) and depths (N) of world `points` (N×3); nan pixels where the depth is not above 0."""
    local = transform(camera_from_world, points)
    z = np.where(local[:, 2] > 1e-9, local[:, 2], np.nan)
    return local[:, :2] / z[:, None] * focal, local[:, 2]


@dataclass(frozen=True, eq=False)
class PoseEstimate:
    """A pose (4×4, target_from_source) and which correspondences agree with it (N bool)."""

    pose: np.ndarray
    inliers: np.ndarray


def absolute_pose(
    points: np.ndarray,
    rays: np.ndarray,
    focal: float,
    threshold: float = 2.0,
    initial: np.ndarray | None = None,
    seed: int = 0,
) -> PoseEstimate | None:
    """camera_from_world from world `points` (N×3) seen at ray pixels `rays` (N×2); None without a solution.

    threshold: reprojection error of an inlier in pixels.  initial: a pose to start from (PoseLib only).
    LO-RANSAC over P3P with non-linear refinement (PoseLib), or OpenCV's P3P RANSAC where PoseLib is missing.
    """
    if len(points) < 4:
        return None
    estimate = _absolute_poselib if _poselib() else _absolute_opencv
    pose = estimate(np.asarray(points, np.float64), np.asarray(rays, np.float64), focal, threshold, initial, seed)
    if pose is None or not np.isfinite(pose).all():
        return None
    seen, _ = project(pose, points, focal)
    inliers = np.linalg.norm(seen - rays, axis=1) <= threshold  # nan compares False
    return PoseEstimate(pose, inliers) if np.count_nonzero(inliers) >= 4 else None


def relative_pose(
    first: np.ndarray, second: np.ndarray, focal: float, threshold: float = 1.0, seed: int = 0
) -> PoseEstimate | None:
    """second_from_first, with a translation of length 1, from ray pixels of N points in two views; None without one.

    threshold: Sampson error of an inlier in pixels. LO-RANSAC over the five-point method (PoseLib), or OpenCV's USAC.
    With too little parallax the direction of the translation means nothing: check the angles of `triangulate`.
    """
    if len(first) < 8:
        return None
    estimate = _relative_poselib if _poselib() else _relative_opencv
    pose = estimate(np.asarray(first, np.float64), np.asarray(second, np.float64), focal, threshold, seed)
    if pose is None or not np.isfinite(pose).all():
        return None
    inliers = sampson_error(pose, first, second, focal) <= threshold
    return PoseEstimate(pose, inliers) if np.count_nonzero(inliers) >= 8 else None


def sampson_error(second_from_first: np.ndarray, first: np.ndarray, second: np.ndarray, focal: float) -> np.ndarray:
    """First-order distance (N, pixels) of ray pixels of two views to the epipolar geometry of a relative pose."""
    essential = skew(second_from_first[:3, 3]) @ second_from_first[:3, :3]
    rays = [np.column_stack([view / focal, np.ones(len(view))]) for view in (first, second)]
    lines = rays[0] @ essential.T, rays[1] @ essential
    scale = np.sqrt(np.square(lines[0][:, :2]).sum(axis=1) + np.square(lines[1][:, :2]).sum(axis=1))
    return focal * np.abs(np.sum(rays[1] * lines[0], axis=1)) / np.maximum(scale, 1e-12)


def rotation_residual(first: np.ndarray, second: np.ndarray, focal: float) -> float:
    """Median distance in pixels between ray pixels of two views after the rotation that explains them best.

    Near the noise of the points there is no parallax, and a relative pose between the views is a guess.
    """
    rays = [np.column_stack([view / focal, np.ones(len(view))]) for view in (first, second)]
    unit = [ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays]
    weights = np.ones(len(first))
    for _ in range(5):  # iteratively re-weighted Kabsch: close to the least sum of distances
        left, _values, right = np.linalg.svd((unit[1] * weights[:, None]).T @ unit[0])
        rotation = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
        turned = rays[0] @ rotation.T
        distances = np.linalg.norm(turned[:, :2] / turned[:, 2:] * focal - second, axis=1)
        weights = 1 / np.maximum(distances, 0.5)
    return float(np.median(distances))


def _poselib():
    """PoseLib, or None where it is not installed."""
    try:
        import poselib
    except ImportError:
        return None
    return poselib


def _virtual_camera(focal: float) -> dict:
    return {"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [focal, 0, 0]}


def _to_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, np.ravel(translation)
    return pose


def _absolute_poselib(points, rays, focal, threshold, initial, seed) -> np.ndarray | None:
    poselib = _poselib()
    ransac = {"max_reproj_error": threshold, "seed": seed, "min_iterations": 20, "max_iterations": 1000}
    refine = {"loss_type": "CAUCHY", "loss_scale": threshold / 2}
    start = None
    if initial is not None:
        start = poselib.CameraPose()
        start.R, start.t = initial[:3, :3], initial[:3, 3]
    found, report = poselib.estimate_absolute_pose(rays, points, _virtual_camera(focal), ransac, refine, start)
    return _to_matrix(found.R, found.t) if report["num_inliers"] >= 4 else None


def _absolute_opencv(points, rays, focal, threshold, initial, seed) -> np.ndarray | None:
    cv2.setRNGSeed(seed)
    matrix = np.diag([focal, focal, 1.0])
    found, vector, translation, inliers = cv2.solvePnPRansac(
        points, rays, matrix, None, flags=cv2.SOLVEPNP_P3P, reprojectionError=threshold, iterationsCount=300
    )
    if not found or inliers is None:
        return None
    kept = np.ravel(inliers)
    vector, translation = cv2.solvePnPRefineLM(points[kept], rays[kept], matrix, None, vector, translation)
    return _to_matrix(cv2.Rodrigues(vector)[0], translation)


def _relative_poselib(first, second, focal, threshold, seed) -> np.ndarray | None:
    ransac = {"max_epipolar_error": threshold, "seed": seed, "min_iterations": 100, "max_iterations": 5000}
    camera = _virtual_camera(focal)
    found, report = _poselib().estimate_relative_pose(first, second, camera, camera, ransac, {"loss_type": "CAUCHY"})
    length = np.linalg.norm(found.t)
    return _to_matrix(found.R, found.t / length) if report["num_inliers"] >= 8 and length > 0 else None


def _relative_opencv(first, second, focal, threshold, seed) -> np.ndarray | None:
    cv2.setRNGSeed(seed)
    matrix = np.diag([focal, focal, 1.0])
    essential, inliers = cv2.findEssentialMat(
        first, second, matrix, method=cv2.USAC_ACCURATE, prob=0.9999, threshold=threshold
    )
    if essential is None or essential.shape != (3, 3):
        return None
    _, rotation, translation, _ = cv2.recoverPose(essential, first, second, matrix, mask=inliers.copy())
    return _to_matrix(rotation, translation)
