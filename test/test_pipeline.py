"""The one road: image to pose on the rendered flight, and what it says to bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kp_frontend import Frontend, load_extractor
from kp_frontend.errors import InputError
from kp_frontend.odometry import OdometryConfig
from kp_frontend.pipeline import Frame
from kp_frontend.replay import flight

FLIGHT = flight.Flight(frames=240)


@pytest.fixture(scope="module")
def views() -> list[flight.View]:
    return [FLIGHT.view(index) for index in range(6)]


def frames(views, depth: bool = False, right: bool = False) -> list[Frame]:
    return [
        Frame(view.stamp, view.image, depth=view.depth if depth else None, right=view.right if right else None)
        for view in views
    ]


def metric_frontend(features: str) -> Frontend:
    return Frontend(features, camera=flight.camera(), baseline=FLIGHT.baseline, odometry=OdometryConfig())


@pytest.mark.parametrize("features", ["orb", "gftt_lk"])
@pytest.mark.parametrize("sensor", ["depth", "right"])
def test_metric_odometry_follows_the_flight(views, features, sensor):
    frontend = metric_frontend(features)
    outputs = [frontend.process(frame) for frame in frames(views, **{sensor: True})]
    start, end = views[0].world_from_camera, views[-1].world_from_camera
    truth = np.linalg.inv(start) @ end
    assert outputs[-1].state.status == "tracking"
    assert outputs[-1].state.metric
    estimate = np.linalg.inv(outputs[0].state.world_from_camera) @ outputs[-1].state.world_from_camera
    travelled = np.linalg.norm(truth[:3, 3])
    assert travelled > 0.1
    assert np.linalg.norm(estimate[:3, 3] - truth[:3, 3]) < (0.1 if sensor == "depth" else 0.2) * travelled


def test_rows_of_output_belong_together(views):
    frontend = Frontend("orb", top_k=500)
    first, second = (frontend.process(frame) for frame in frames(views[:2]))
    assert first.previous is None
    assert len(first.matches) == 0
    assert second.previous is first.features
    assert second.previous_stamp == first.stamp
    assert len(second.features) == len(second.tracks) == 500
    assert len(second.matches) > 200
    assert np.array_equal(second.tracks.ids[second.matches.query], first.tracks.ids[second.matches.train])
    assert (second.tracks.ages[second.matches.query] == 2).all()
    assert second.state is None
    assert {"extract", "match"} <= set(second.timings)


def test_stamps_that_repeat_or_jump_back_are_refused_and_the_next_frame_is_processed(views):
    frontend = Frontend("orb")
    first, second, third = frames(views[:3])
    frontend.process(second)
    with pytest.raises(InputError, match="repeats"):
        frontend.process(second)
    with pytest.raises(InputError, match="jumps back"):
        frontend.process(first)
    assert len(frontend.process(third).matches) > 100
    frontend.reset()
    assert frontend.process(first).previous is None


@pytest.mark.parametrize("stage", ["depth", "odometry"])
def test_after_a_frame_without_a_pose_matches_are_still_to_the_frame_before(views, stage, monkeypatch):
    frontend = metric_frontend("orb")
    first, second, third = frames(views[:3], right=True)
    frontend.process(first)
    owner, name = {"depth": (frontend.tracker, "match_stereo"), "odometry": (frontend.odometry, "process")}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, raise_memory_error)
        with pytest.raises(MemoryError):
            frontend.process(second)
    output = frontend.process(third)
    assert output.previous_stamp == second.stamp
    assert len(output.matches) > 100
    reference = Frontend("orb").extract(second).seen.features
    np.testing.assert_array_equal(output.previous.keypoints, reference.keypoints)


def raise_memory_error(*_):
    raise MemoryError


def test_sizes_that_differ_are_refused(views):
    frontend = metric_frontend("orb")
    frame = frames(views, depth=True)[0]
    with pytest.raises(InputError, match="320×240 but camera_info says 640×480"):
        frontend.process(dataclasses.replace(frame, image=frame.image[::2, ::2].copy()))
    with pytest.raises(InputError, match="depth is 320×240"):
        frontend.process(dataclasses.replace(frame, depth=frame.depth[::2, ::2].copy()))
    assert frontend.process(frame).state.status == "tracking"


def test_second_image_needs_a_baseline_and_odometry_a_camera(views):
    frontend = Frontend("orb", camera=flight.camera(), odometry=OdometryConfig())
    with pytest.raises(InputError, match="baseline"):
        frontend.process(frames(views, right=True)[0])
    with pytest.raises(InputError, match="calibrated camera"):
        Frontend("orb", odometry=OdometryConfig())


@pytest.mark.parametrize("features", ["orb", "gftt_lk"])
def test_black_white_and_blurred_frames_do_not_end_the_run(views, features):
    frontend = metric_frontend(features)
    good = frames(views, depth=True)
    frontend.process(good[0])
    shape = good[0].image.shape
    for index, level in enumerate([0, 255, 90]):
        image = np.full(shape, level, np.uint8)
        stamp = good[0].stamp + 1_000_000 * (index + 1)
        output = frontend.process(Frame(stamp, image, depth=np.zeros(shape[:2], np.float32)))
        assert len(output.features) == 0
        assert output.state.status == "lost"
    states = [frontend.process(frame).state for frame in good[1:]]
    assert states[-1].status == "tracking"


def test_public_promise_without_ros(views):
    features = load_extractor("orb", top_k=300).extract(views[0].image)
    assert features.keypoints.shape == (300, 2)
    assert features.metric == "hamming"
    assert features.scores.dtype == np.float32
