"""Odometry on a synthetic world: metric and monocular paths come back; what is lost says so and is found again."""

import numpy as np
import pytest

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.features import Features, Tracks
from kp_frontend.geometry import invert, se3_exp, so3_log, transform
from kp_frontend.odometry import Odometry, OdometryConfig

CAMERA = CameraModel(640, 480, np.array([[500, 0, 320], [0, 500, 240], [0, 0, 1.0]]), np.zeros(0), "plumb_bob")


class World:
    """Points in a box round a camera that walks; each frame sees those in front, with ids and descriptors."""

    def __init__(self, count=3000, noise=0.3, outliers=0.05, descriptors=True, seed=0):
        self.random = np.random.default_rng(seed)
        self.points = self.random.uniform([-6, -3, -2], [6, 3, 9], (count, 3))
        table = self.random.normal(size=(count, 32)).astype(np.float32)
        self.table = table / np.linalg.norm(table, axis=1, keepdims=True)
        self.noise, self.outliers, self.descriptors = noise, outliers, descriptors
        self.offset = 1  # of ids: another offset is another life of the tracks

    def pose(self, step):
        """world_from_camera: a gentle curve, 4 cm a frame."""
        turn = se3_exp(np.array([0, 0, 0, 0.1 * np.sin(step / 9), 0.012 * step, 0.05 * np.sin(step / 7)]))
        turn[:3, 3] = [0.03 * step, 0.1 * np.sin(step / 10), 0.025 * step]
        return turn

    def frame(self, step):
        local = transform(invert(self.pose(step)), self.points)
        pixels = CAMERA.project(np.where(local[:, 2:] > 0.5, local, [0, 0, 1]))
        visible = (local[:, 2] > 0.5) & (pixels > 5).all(axis=1) & (pixels < [634, 474]).all(axis=1)
        which = np.flatnonzero(visible)[:400]
        keypoints = pixels[which] + self.noise * self.random.normal(size=(len(which), 2))
        wrong = self.random.random(len(which)) < self.outliers
        keypoints[wrong] = self.random.uniform([0, 0], [639, 479], (wrong.sum(), 2))
        table = self.table[which] if self.descriptors else np.zeros((len(which), 0), np.float32)
        features = Features(keypoints.astype(np.float32), np.ones(len(which), np.float32), table)
        tracks = Tracks((which + self.offset).astype(np.uint32), np.ones(len(which), np.uint32))
        depth = local[which, 2] * (1 + 0.003 * self.random.normal(size=len(which)))
        depth[::5] = np.nan
        return features, tracks, depth.astype(np.float32)


def nothing(world):
    size = 32 if world.descriptors else 0
    return Features.empty(size), Tracks.empty(), np.zeros(0, np.float32)


def run(odometry, world, steps, depth=True, start=0):
    states = []
    for step in range(start, start + steps):
        features, tracks, depths = world.frame(step)
        states.append(odometry.process(step * 100_000_000 + 1, features, tracks, depths if depth else None))
    return states


def errors(states, world, scale=1.0):
    """Metres and radians between each state's pose and the truth, both relative to frame 0."""
    moved = []
    for state in states:
        truth = invert(world.pose(0)) @ world.pose(round((state.stamp - 1) / 1e8))
        moved.append((
            np.linalg.norm(scale * state.world_from_camera[:3, 3] - truth[:3, 3]),
            np.linalg.norm(so3_log(state.world_from_camera[:3, :3].T @ truth[:3, :3])),
        ))
    return np.array(moved).T


@pytest.mark.parametrize("descriptors", [True, False])
def test_rgbd_path_is_metric(descriptors):
    world = World(descriptors=descriptors)
    states = run(Odometry(CAMERA), world, 40)
    assert [state.status for state in states] == ["tracking"] * 40
    assert all(state.metric for state in states)
    distance, angle = errors(states, world)
    assert distance.max() < 0.02
    assert angle.max() < 0.006
    assert 3 < sum(state.keyframe for state in states) < 30
    assert states[20].inliers > 0.85 * states[20].tracked > 100


def test_covariance_has_the_size_of_the_error():
    world = World()
    states = run(Odometry(CAMERA), world, 12)
    distance, _ = errors(states[1:], world)
    sigma = np.array([np.sqrt(np.trace(state.covariance[:3, :3])) for state in states[1:]])
    assert 0.1 < np.sqrt(np.mean(distance**2)) / np.sqrt(np.mean(sigma**2)) < 10
    np.testing.assert_allclose(states[3].covariance, states[3].covariance.T, atol=1e-12)


def test_monocular_path_has_the_right_shape():
    world = World()
    states = run(Odometry(CAMERA), world, 50, depth=False)
    assert states[0].status == "initialising"
    assert "parallax" in states[1].message or states[1].status == "tracking"
    assert states[0].world_from_camera is None
    tracking = [state for state in states if state.status == "tracking"]
    assert len(tracking) > 40
    assert not any(state.metric for state in states)
    found = np.array([state.world_from_camera[:3, 3] for state in tracking])
    truth = np.array([(invert(world.pose(0)) @ world.pose(round((s.stamp - 1) / 1e8)))[:3, 3] for s in tracking])
    scale = np.sum(found * truth) / np.sum(found * found)
    distance, angle = errors(tracking, world, scale)
    assert distance.max() < 0.05 * np.linalg.norm(truth[-1])
    assert angle.max() < 0.02


def test_frames_that_waited_for_a_monocular_map_get_their_poses():
    world = World()
    states = run(Odometry(CAMERA), world, 30, depth=False)
    start = next(index for index, state in enumerate(states) if state.status == "tracking")
    assert start > 0
    recovered = states[start].recovered
    assert [stamp for stamp, _ in recovered] == [state.stamp for state in states[:start]]
    assert not any(state.recovered for state in states[start + 1 :])
    reached, travelled = (np.linalg.norm(pose[:3, 3]) for pose in (states[start].world_from_camera, world.pose(start)))
    for stamp, pose in recovered:
        truth = world.pose(round((stamp - 1) / 1e8))
        assert np.linalg.norm(pose[:3, 3] * travelled / reached - truth[:3, 3]) < 0.1 * travelled
        assert np.linalg.norm(so3_log(pose[:3, :3].T @ truth[:3, :3])) < 0.01


def test_pixels_without_a_ray_are_left_out():
    world, odometry = World(), Odometry(CAMERA)
    class Blind(CameraModel):
        def bearings(self, pixels):
            rays = super().bearings(pixels)
            rays[::7] = np.nan
            return rays

    odometry.camera = Blind(CAMERA.width, CAMERA.height, CAMERA.matrix)
    states = run(odometry, world, 20)
    assert [state.status for state in states] == ["tracking"] * 20
    assert errors(states, world)[0].max() < 0.02


def test_rotation_alone_does_not_start_a_monocular_map():
    world = World(outliers=0, noise=1.5)
    world.pose = lambda step: se3_exp(np.array([0, 0, 0, 0, 0.02 * step, 0.01 * step]))
    assert {state.status for state in run(Odometry(CAMERA), world, 12, depth=False)} == {"initialising"}


@pytest.mark.parametrize("depth", [True, False])
def test_black_frames_are_lost_and_the_same_tracks_find_back(depth):
    world, odometry = World(), Odometry(CAMERA)
    run(odometry, world, 20, depth)
    for step in (20, 21, 22):
        state = odometry.process(step * 100_000_000 + 1, *nothing(world))
        assert state.status == "lost"
        assert state.world_from_camera is None
        assert "lost: 0 features" in state.message
    state = run(odometry, world, 1, depth, start=23)[0]
    assert state.status == "tracking"
    assert "found again after 3 frames" in state.message


def test_new_tracks_relocalise_by_descriptors():
    world, odometry = World(), Odometry(CAMERA)
    run(odometry, world, 20)
    odometry.process(2_000_000_001, *nothing(world))
    world.offset = 100_001
    states = run(odometry, world, 8, start=21)
    assert {state.status for state in states} == {"tracking"}
    assert "found again" in states[0].message
    assert errors(states, world)[0].max() < 0.03


def test_new_tracks_without_descriptors_start_a_new_map_where_the_old_one_ended():
    world, odometry = World(descriptors=False), Odometry(CAMERA, OdometryConfig(patience=3))
    last = run(odometry, world, 20)[-1]
    world.offset = 100_001
    states = run(odometry, world, 8, start=20)
    assert [state.status for state in states[:3]] == ["lost", "lost", "tracking"]
    assert "started anew at the last known pose" in states[2].message
    np.testing.assert_allclose(states[2].world_from_camera, last.world_from_camera, atol=1e-12)
    moved = invert(states[2].world_from_camera) @ states[-1].world_from_camera
    truth = invert(world.pose(22)) @ world.pose(27)
    np.testing.assert_allclose(moved[:3, 3], truth[:3, 3], atol=0.01)


@pytest.mark.parametrize("depth", [True, False])
def test_a_monocular_map_starts_anew_at_the_old_scale(depth):
    world, odometry = World(descriptors=False), Odometry(CAMERA, OdometryConfig(patience=2))
    world.points[:, 2] = world.points[:, 2] / 3 + 7  # a wall that the camera comes close to
    world.pose = lambda step: se3_exp(np.array([0.03 * step, 0, 0.12 * step, 0, 0, 0]))
    first = [state for state in run(odometry, world, 30, depth) if state.status == "tracking"]
    world.offset = 100_001
    states = run(odometry, world, 30, depth=False, start=30)
    assert "started anew" in states[1].message
    second = [state for state in states if state.status == "tracking"]

    def scale(states):
        moved = np.linalg.norm(states[-1].world_from_camera[:3, 3] - states[0].world_from_camera[:3, 3])
        ends = [world.pose(round((state.stamp - 1) / 1e8))[:3, 3] for state in (states[0], states[-1])]
        return moved / np.linalg.norm(ends[1] - ends[0])

    assert scale(second) == pytest.approx(scale(first), rel=0.25)


def test_too_little_to_start_from_says_so_and_starts_later():
    world, odometry = World(), Odometry(CAMERA)
    features, tracks, depths = world.frame(0)
    lone = slice(0, 1)
    poor = [
        nothing(world),
        (features.select(lone), Tracks(tracks.ids[lone], tracks.ages[lone]), depths[lone]),
        (features, tracks, np.full(len(features), np.nan, np.float32)),
        (features, tracks, np.zeros(len(features), np.float32)),
    ]
    for step, (some, ids, depth) in enumerate(poor):
        state = odometry.process(step + 1, some, ids, depth)
        assert state.status == "initialising"
        assert state.message
    assert run(odometry, world, 2, start=1)[-1].status == "tracking"


def test_few_matches_are_lost_not_guessed():
    world, odometry = World(descriptors=False), Odometry(CAMERA)
    run(odometry, world, 10)
    features, tracks, depths = world.frame(10)
    few = slice(0, 6)
    tracks = Tracks(tracks.ids[few], tracks.ages[few])
    state = odometry.process(2_000_000_000, features.select(few), tracks, depths[few])
    assert state.status == "lost"
    assert state.tracked <= 6


def test_depth_may_go_away_and_come_back():
    world, odometry = World(), Odometry(CAMERA)
    spans = ((0, True), (10, False), (20, True))
    states = [state for start, depth in spans for state in run(odometry, world, 10, depth, start)]
    assert {state.status for state in states} == {"tracking"}
    assert errors(states, world)[0].max() < 0.03


def test_depth_that_comes_late_brings_metres():
    world, odometry = World(), Odometry(CAMERA)
    before = run(odometry, world, 20, depth=False)[-1]
    states = run(odometry, world, 20, start=20)
    assert (before.status, before.metric) == ("tracking", False)
    assert {(state.status, state.metric) for state in states} == {("tracking", True)}
    assert "in metres" in states[0].message
    moved = invert(states[0].world_from_camera) @ states[-1].world_from_camera
    truth = invert(world.pose(20)) @ world.pose(39)
    np.testing.assert_allclose(moved[:3, 3], truth[:3, 3], atol=0.02)
    step = invert(before.world_from_camera) @ states[0].world_from_camera
    assert np.linalg.norm(step[:3, 3]) < 0.3  # it goes on where it was


def test_the_same_input_gives_the_same_path_and_reset_starts_over():
    odometry = Odometry(CAMERA)
    first = run(odometry, World(), 15)
    odometry.reset()
    again = run(odometry, World(), 15)
    for before, after in zip(first, again):
        np.testing.assert_array_equal(before.world_from_camera, after.world_from_camera)


def test_memory_does_not_grow_with_the_path():
    world, odometry = World(descriptors=False), Odometry(CAMERA, OdometryConfig(window=3, capacity=4))
    sizes = []
    for step in range(80):
        features, tracks, depths = world.frame(step)
        lives = (step + 4 * (tracks.ids % 2)) // 8  # each track lives 8 frames; half of them end at a time
        tracks = Tracks((tracks.ids + 10_000 * lives).astype(np.uint32), 3 * tracks.ages)
        assert odometry.process(step + 1, features, tracks, depths).status == "tracking"
        sizes.append(len(odometry._map.positions) + len(odometry._landmark_of))
    assert max(sizes[40:]) <= 1.2 * max(sizes[:40])


def test_bad_options_are_named():
    with pytest.raises(InputError, match="window"):
        OdometryConfig(window=1)
    with pytest.raises(InputError, match="ray_sigma"):
        OdometryConfig(ray_sigma=-1)
    stereo = OdometryConfig.for_stereo(500.0, 0.1, disparity_sigma=0.5)
    assert stereo.depth_noise_growth == pytest.approx(0.01)
