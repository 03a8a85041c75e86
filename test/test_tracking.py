"""Tracking: identities persist while the picture moves, and survive frames in which nothing is seen."""

import cv2
import numpy as np
import pytest

from kp_frontend.corners import shi_tomasi
from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_frontend.stereo import search_rows
from kp_frontend.trackers import DescriptorTracker, FlowTracker, TrackerConfig, load_tracker
from kp_frontend.trackers.base import LARGEST_ID

data = pytest.importorskip("skimage.data")


def photo():
    return cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)


def window(shift, size=(360, 300)):
    """A crop of the photo, `shift` pixels to the right and down: content moves by −shift."""
    x, y = 40 + shift[0], 60 + shift[1]
    matrix = np.float32([[1, 0, -x], [0, 1, -y]])
    return cv2.warpAffine(photo(), matrix, size)


class Scripted:
    """An extractor that returns what the test says, with fixed descriptors."""

    name, descriptor_size, metric = "scripted", 16, "l2"

    def __init__(self, frames):
        self.frames = list(frames)
        table = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
        self.table = table / np.linalg.norm(table, axis=1, keepdims=True)

    def extract(self, image, mask=None):
        which, places = self.frames.pop(0)
        places = np.asarray(places, np.float32).reshape(-1, 2)
        return Features(places, np.ones(len(places), np.float32), self.table[np.asarray(which, int)])


BLANK = np.zeros((200, 300), np.uint8)


def test_ids_follow_the_descriptor_and_ages_count_frames_seen():
    a, b, c = [50, 50], [150, 80], [250, 120]
    frames = [([0, 1], [a, b]), ([1, 0, 2], [b, a, c]), ([2], [c]), ([0, 2], [a, c])]
    tracker = DescriptorTracker(Scripted(frames), TrackerConfig(max_missed=2))
    outputs = [tracker.track(BLANK) for _ in frames]
    first, second = outputs[0].tracks.ids
    assert outputs[0].tracks.ages.tolist() == [1, 1]
    assert outputs[1].tracks.ids[:2].tolist() == [second, first]
    assert outputs[1].tracks.ages.tolist() == [2, 2, 1]
    assert outputs[1].matches.query.tolist() == [0, 1]
    assert outputs[1].matches.train.tolist() == [1, 0]
    # point 0 was away for one frame: its track lives, but there is no match to the frame before
    assert outputs[3].tracks.ids[0] == first
    assert outputs[3].tracks.ages.tolist() == [3, 3]
    assert outputs[3].matches.query.tolist() == [1]


def test_a_track_away_for_too_long_is_a_new_one_and_ids_are_never_used_twice():
    frames = [([0], [[50, 50]]), ([], []), ([], []), ([0], [[50, 50]])]
    tracker = DescriptorTracker(Scripted(frames), TrackerConfig(max_missed=1))
    ids = [tracker.track(BLANK).tracks.ids for _ in frames]
    assert ids[3][0] > ids[0][0] > 0
    tracker.reset()
    tracker.extractor.frames = [([0], [[50, 50]])]
    assert tracker.track(BLANK).tracks.ids[0] > ids[3][0]


@pytest.mark.parametrize("spec", ["orb", "gftt_lk"])
def test_ids_go_round_and_zero_stays_no_track(spec):
    tracker = load_tracker(spec, top_k=300)
    assert tracker._ids.take(3).tolist() == [1, 2, 3]
    tracker._ids._taken = LARGEST_ID - 100
    first, second = tracker.track(window((0, 0))), tracker.track(window((6, 3)))
    assert first.tracks.ids.dtype == np.uint32
    assert sorted(first.tracks.ids.tolist()) == [*range(1, len(first.tracks) - 99), *range(2**32 - 100, 2**32)]
    assert len(second.matches) > 150
    assert (second.tracks.ids > 0).all()
    assert len(np.unique(second.tracks.ids)) == len(second.tracks.ids)


def test_the_window_keeps_look_alikes_apart_and_follows_the_velocity():
    # a window of 45 px, and the whole view moves by 40, 80 and 120 px: only the prediction stays within it
    steps = [(list(range(9)), [[x, 20 * k] for k in range(9)]) for x in (20, 60, 140, 260)]
    tracker = DescriptorTracker(Scripted(steps), TrackerConfig(window=0.15))
    assert len({int(tracker.track(BLANK).tracks.ids[0]) for _ in steps}) == 1
    twins = [([5, 5], [[20, 60], [280, 60]]), ([5, 5], [[275, 60], [25, 60]])]
    tracker = DescriptorTracker(Scripted(twins), TrackerConfig(window=0.15))
    before, after = (tracker.track(BLANK).tracks.ids.tolist() for _ in twins)
    assert after == before[::-1]


def test_a_jump_of_the_camera_is_found_outside_the_window():
    which, places = np.arange(30), np.random.default_rng(1).uniform(5, 90, (30, 2))
    tracker = DescriptorTracker(Scripted([(which, places), (which, places + [190, 90])]), TrackerConfig(window=0.1))
    before, after = (tracker.track(BLANK).tracks.ids.tolist() for _ in range(2))
    assert after == before


def test_a_jerk_after_steady_frames_is_searched_in_the_whole_window():
    # still for three frames, so the search narrows to 6 px; then all move by 30 px, within the window of 45 px
    steps = [(list(range(9)), [[x, 20 * k] for k in range(9)]) for x in (50, 50, 50, 80)]
    tracker = DescriptorTracker(Scripted(steps), TrackerConfig(window=0.15))
    outputs = [tracker.track(BLANK) for _ in steps]
    assert outputs[-1].tracks.ids.tolist() == outputs[0].tracks.ids.tolist()
    assert outputs[-1].tracks.ages.tolist() == [4] * 9


def test_what_was_seen_only_once_is_not_looked_for_again():
    steps = [([0, 1], [[50, 50], [150, 80]]), ([1], [[150, 80]]), ([0, 1], [[50, 50], [150, 80]])]
    tracker = DescriptorTracker(Scripted(steps), TrackerConfig(max_missed=2))
    first, _, last = (tracker.track(BLANK).tracks for _ in steps)
    assert last.ids[1] == first.ids[1]
    assert last.ids[0] > first.ids.max()


@pytest.mark.parametrize("spec", ["orb", "gftt_lk"])
def test_real_pictures_are_followed_to_where_they_moved(spec):
    tracker = load_tracker(spec, top_k=300)
    first = tracker.track(window((0, 0)))
    second = tracker.track(window((6, 3)))
    moved = second.features.keypoints[second.matches.query] - first.features.keypoints[second.matches.train]
    assert len(second.matches) > 150
    tolerance = {"orb": 4, "gftt_lk": 0.2}[spec]  # ORB's coarse pyramid levels place points to some pixels
    assert np.mean(np.linalg.norm(moved - [-6, -3], axis=1) < tolerance) > 0.9
    np.testing.assert_array_equal(second.tracks.ids[second.matches.query], first.tracks.ids[second.matches.train])
    assert len(np.unique(second.tracks.ids)) == len(second.tracks.ids)
    assert {"extract", "flow"} & set(second.timings)


@pytest.mark.parametrize("spec", ["orb", "gftt_lk"])
def test_black_frames_and_lone_points_do_no_harm(spec):
    tracker = load_tracker(spec, top_k=300)
    image = window((0, 0))
    black = np.zeros_like(image)
    spot = black.copy()
    cv2.circle(spot, (180, 150), 20, (255, 255, 255), -1)
    tracker.track(image)
    assert len(tracker.track(black).features) == 0
    tracker.track(spot)
    tracker.track(np.full_like(image, 255))
    again = tracker.track(image)
    assert len(again.features) > 150
    assert len(np.unique(again.tracks.ids)) == len(again.tracks.ids)
    assert len(tracker.track(window((2, 1))).matches) > 100


def test_flow_stays_within_the_mask_top_k_and_distance():
    tracker = FlowTracker(TrackerConfig(min_distance=10), top_k=80)
    mask = np.zeros((300, 360), np.uint8)
    mask[:, :200] = 255
    for step in range(3):
        tracked = tracker.track(window((4 * step, 0)), mask)
        assert 20 < len(tracked.features) <= 80
        assert (tracked.features.keypoints[:, 0] < 200.5).all()
    gaps = np.linalg.norm(tracked.features.keypoints[:, None] - tracked.features.keypoints, axis=2)
    assert gaps[np.triu_indices(len(gaps), 1)].min() > 4
    assert tracked.features.descriptors.shape[1] == 0


def test_flow_goes_on_after_a_short_blackout_with_the_same_ids():
    tracker = FlowTracker(TrackerConfig(max_missed=2), top_k=200)
    before = tracker.track(window((0, 0)))
    black = np.zeros((300, 360, 3), np.uint8)
    assert len(tracker.track(black).features) == len(tracker.track(black).features) == 0
    after = tracker.track(window((5, 0)))
    assert len(after.matches) == 0  # the frame before was black
    _, old, new = np.intersect1d(before.tracks.ids, after.tracks.ids, return_indices=True)
    assert len(old) > 100
    moved = after.features.keypoints[new] - before.features.keypoints[old]
    assert np.median(np.abs(moved - [-5, 0])) < 0.2
    for _ in range(3):
        tracker.track(black)
    assert len(np.intersect1d(tracker.track(window((5, 0))).tracks.ids, before.tracks.ids)) == 0


def test_flow_starts_anew_when_the_size_changes():
    tracker = FlowTracker(top_k=100)
    old = tracker.track(window((0, 0)))
    new = tracker.track(window((0, 0), (200, 150)))
    assert len(new.matches) == 0
    assert new.tracks.ids.min() > old.tracks.ids.max()


@pytest.mark.parametrize("spec", ["orb:top_k=400", "gftt_lk:top_k=400"])
def test_stereo_disparity_of_a_shifted_picture(spec):
    tracker = load_tracker(spec)
    left, right = window((0, 0)), window((12.5, 0))
    seen = tracker.extract(left, right=right)
    features = tracker.follow(seen).features
    disparity = tracker.match_stereo(seen, features)
    known = np.isfinite(disparity)
    assert known.mean() > 0.6
    assert np.median(np.abs(disparity[known] - 12.5)) < 0.1
    assert np.mean(np.abs(disparity[known] - 12.5) < 0.5) > 0.9
    nothing = tracker.match_stereo(tracker.extract(left, right=np.zeros_like(right)), features)
    assert np.isnan(nothing).all()


def test_row_search_by_hand():
    left = np.random.default_rng(0).integers(0, 256, (40, 120), dtype=np.uint8)
    right = np.roll(left, -7, axis=1)
    found = search_rows(left, right, np.float32([[60, 20], [3, 20]]), 30)
    assert found[0] == 7
    assert np.isnan(found[1])


def test_corners_of_a_square_spread_and_masked():
    image = np.zeros((100, 120), np.uint8)
    image[30:60, 40:90] = 200
    keypoints, scores = shi_tomasi(image, 10)
    expected = {(40, 30), (89, 30), (40, 59), (89, 59)}
    assert len(keypoints) == 4
    assert all(min(abs(x - u) + abs(y - v) for u, v in expected) <= 2 for x, y in keypoints)
    allowed = np.full_like(image, 255)
    allowed[:, 60:] = 0
    assert len(shi_tomasi(image, 10, allowed)[0]) == 2
    assert len(shi_tomasi(np.full((50, 50), 90, np.uint8), 10)[0]) == len(scores) - 4 == 0
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    noise[:, 100:] //= 4  # a faint half gets its share of corners
    spread, _ = shi_tomasi(noise, 40, cells=(2, 1))
    assert 18 <= np.sum(spread[:, 0] < 100) <= 22


def test_bad_options_are_named():
    with pytest.raises(InputError, match="flow_error"):
        load_tracker("gftt_lk:flow_eror=3")
    with pytest.raises(InputError, match="ratio"):
        TrackerConfig(ratio=3)
    with pytest.raises(InputError, match="max_missed"):
        TrackerConfig(max_missed=-1)
    with pytest.raises(InputError, match="flow_window"):
        load_tracker("gftt_lk:flow_window=wide")
    with pytest.raises(InputError):
        load_tracker("no_such_feature")
    with pytest.raises(InputError, match="image"):
        load_tracker("gftt_lk").track(np.zeros((10, 10), np.float32))
    assert load_tracker("gftt_lk:flow_window=31,top_k=50").config.flow_window == 31
