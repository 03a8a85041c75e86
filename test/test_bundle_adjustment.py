"""Bundle adjustment: derivatives against finite differences, and a disturbed world that comes back."""

import numpy as np

from kp_frontend import bundle_adjustment
from kp_frontend.bundle_adjustment import Observations, Problem, adjust, refine_pose, residuals
from kp_frontend.geometry import project, se3_exp, se3_log, transform

FOCAL = 500.0


def world(keyframes=5, count=80, noise=0.0, depth=True, seed=0):
    """A problem at its solution: cameras along x that look at points 3 to 8 m away; every second sighting has depth."""
    random = np.random.default_rng(seed)
    points = random.uniform([-2, -1.5, 3], [2, 1.5, 8], (count, 3))
    poses = np.stack([se3_exp(np.array([0.15 * k, 0.02 * k, 0, 0, 0.02 * k, 0.01 * k])) for k in range(keyframes)])
    cameras, landmarks = (index.ravel() for index in np.mgrid[:keyframes, :count])
    seen = [project(pose, points, FOCAL) for pose in poses]
    rays = np.concatenate([ray for ray, _ in seen]) + noise * random.normal(size=(len(cameras), 2))
    inverse = 1 / np.concatenate([depth for _, depth in seen])
    inverse[::2] = np.nan
    if not depth:
        inverse[:] = np.nan
    ones = np.ones(len(cameras))
    observations = Observations(rays, ones * 0.5, inverse, ones * 0.01)
    return Problem(poses, np.arange(keyframes) < 1, points, cameras, landmarks, observations, FOCAL)


def disturbed(problem, size, seed=1):
    random = np.random.default_rng(seed)
    twists = np.where(problem.fixed[:, None], 0, size * random.normal(size=(len(problem.poses), 6)))
    points = problem.points + 5 * size * random.normal(size=problem.points.shape)
    return Problem(
        se3_exp(twists) @ problem.poses, problem.fixed, points, problem.cameras, problem.landmarks, problem.seen, FOCAL
    )


def test_jacobians_agree_with_finite_differences():
    problem = world(count=10, noise=1.0)
    pose, seen = problem.poses[1], problem.seen.select(problem.cameras == 1)
    local = transform(pose, problem.points)
    by_point = bundle_adjustment._point_jacobian(local, seen, FOCAL)
    by_pose = bundle_adjustment._pose_jacobian(local, by_point)
    step = 1e-6
    for axis in range(3):
        shift = step * np.eye(3)[axis]
        numeric = (residuals(local + shift, seen, FOCAL) - residuals(local - shift, seen, FOCAL)) / (2 * step)
        np.testing.assert_allclose(by_point[..., axis], numeric, rtol=1e-4, atol=1e-4)
    for axis in range(6):
        moved = [transform(se3_exp(sign * step * np.eye(6)[axis]) @ pose, problem.points) for sign in (1, -1)]
        numeric = (residuals(moved[0], seen, FOCAL) - residuals(moved[1], seen, FOCAL)) / (2 * step)
        np.testing.assert_allclose(by_pose[..., axis], numeric, rtol=1e-4, atol=1e-3)


def test_robust_weights_are_the_slope_of_the_cost():
    random = np.random.default_rng(0)
    values = random.normal(size=(20, 3)) * 3
    weights, _ = bundle_adjustment._robust(values)
    for row in range(3):
        for axis in range(3):
            step = np.zeros_like(values)
            step[row, axis] = 1e-5
            slope = (bundle_adjustment._robust(values + step)[1] - bundle_adjustment._robust(values - step)[1]) / 2e-5
            np.testing.assert_allclose(slope, 2 * weights[row, axis] ** 2 * values[row, axis], rtol=1e-4, atol=1e-6)


def test_the_step_solves_the_full_normal_equations():
    problem = disturbed(world(3, 12), 0.002).sorted()
    system = bundle_adjustment._normal_equations(problem, problem.poses, problem.points)
    twists, shifts = bundle_adjustment._solve(system, 0.0)
    count = len(problem.points)
    full = np.zeros((12 + 3 * count, 12 + 3 * count))
    for free in range(2):
        rows = slice(6 * free, 6 * free + 6)
        full[rows, rows] = system.poses[free]
        for point in range(count):
            columns = slice(12 + 3 * point, 15 + 3 * point)
            block = system.mixed[:, free, :, point]
            full[columns, rows], full[rows, columns] = block, block.T
            full[columns, columns] = system.points[point]
    gradient = np.concatenate([system.pose_gradient.ravel(), system.point_gradient.ravel()])
    expected = -np.linalg.solve(full, gradient)
    np.testing.assert_allclose(np.concatenate([twists.ravel(), shifts.ravel()]), expected, rtol=1e-5, atol=1e-9)


def test_a_disturbed_world_comes_back_with_its_scale():
    truth = world()
    poses, points = adjust(disturbed(truth, 0.01), iterations=20)
    np.testing.assert_allclose(se3_log(poses @ np.linalg.inv(truth.poses)), 0, atol=1e-4)
    np.testing.assert_allclose(points, truth.points, atol=1e-3)


def test_without_depth_the_shape_comes_back_and_noise_shrinks():
    truth = world(depth=False, noise=0.5)
    start = disturbed(truth, 0.01)
    poses, points = adjust(start, iterations=20)

    def cost(poses, points):
        return np.square(residuals(start.local(poses, points), start.seen, FOCAL)).sum()

    assert cost(poses, points) <= cost(truth.poses, truth.points) < 0.1 * cost(start.poses, start.points)


def test_wrong_sightings_do_not_bend_the_world():
    truth = world()
    wrong = np.random.default_rng(2).random(len(truth.cameras)) < 0.1
    truth.seen.rays[wrong] += 60
    poses, _ = adjust(disturbed(truth, 0.003), iterations=20)
    np.testing.assert_allclose(se3_log(poses @ np.linalg.inv(truth.poses)), 0, atol=2e-3)


def test_pose_refinement_and_its_covariance():
    truth = world(2, 300)
    seen = truth.seen.select(truth.cameras == 1)
    start = se3_exp(np.array([0.02, -0.01, 0.03, 0.01, -0.01, 0.01])) @ truth.poses[1]
    pose, _ = refine_pose(start, truth.points, seen, FOCAL)
    np.testing.assert_allclose(pose, truth.poses[1], atol=1e-6)
    random = np.random.default_rng(0)
    errors = []
    for _ in range(60):
        noisy = Observations(
            seen.rays + 0.5 * random.normal(size=seen.rays.shape), seen.ray_sigmas,
            seen.inverse_depths + 0.01 * random.normal(size=len(seen.rays)), seen.inverse_depth_sigmas,
        )
        pose, covariance = refine_pose(truth.poses[1], truth.points, noisy, FOCAL)
        errors.append(se3_log(pose @ np.linalg.inv(truth.poses[1])))
    # the Cauchy weights pull the information down a little: the covariance is cautious, never bold
    share = np.mean(np.square(errors), axis=0) / np.diag(covariance)
    assert ((share > 0.3) & (share < 1.3)).all()
    lone, covariance = refine_pose(truth.poses[1], truth.points[:1], seen.select(np.array([0])), FOCAL)
    assert np.isfinite(lone).all()
    assert np.isnan(covariance).all()
