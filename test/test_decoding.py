"""Decoding: peaks, sub-pixel positions and descriptors against slow references and hand-made maps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tiny_models import cells_metadata, full_metadata

from kp_frontend.decoding import View, decode, find_decoder, find_peaks, fit_peaks, sample_descriptors, soft_argmax
from kp_frontend.errors import InputError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def slow_peaks(scores, radius, border, threshold, mask):
    height, width = scores.shape
    found = []
    for y in range(border, height - border):
        for x in range(border, width - border):
            patch = scores[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            if scores[y, x] > threshold and scores[y, x] == patch.max() and mask[y, x]:
                found.append((-scores[y, x], x, y))
    return [(x, y) for _, x, y in sorted(found)]


@pytest.mark.parametrize("radius", [0, 1, 4])
@pytest.mark.parametrize("border", [0, 3])
def test_peaks_are_those_of_the_definition(radius, border):
    scores = noise(23, 31)
    mask = (noise(2, 23, 31)[1] > 0.3).astype(np.uint8)
    expected = slow_peaks(scores, radius, border, 0.4, mask)
    peaks, values = find_peaks(scores, 10_000, radius=radius, border=border, threshold=0.4, mask=mask)
    assert peaks.tolist() == [list(point) for point in expected]
    np.testing.assert_array_equal(values, scores[peaks[:, 1], peaks[:, 0]])
    few, _ = find_peaks(scores, 7, radius=radius, border=border, threshold=0.4, mask=mask)
    assert few.tolist() == peaks[:7].tolist()


def test_a_hidden_peak_still_suppresses_its_neighbours():
    scores = np.zeros((9, 9), np.float32)
    scores[4, 4], scores[4, 5] = 1, 0.9
    mask = np.ones((9, 9), np.uint8)
    mask[4, 4] = 0
    assert len(find_peaks(scores, 5, radius=1, mask=mask)[0]) == 0


def test_no_peaks_in_nothing():
    assert len(find_peaks(np.zeros((20, 20), np.float32), 5, radius=2)[0]) == 0
    assert len(find_peaks(noise(6, 6), 5, radius=1, border=3)[0]) == 0


def test_soft_argmax_by_hand():
    scores = np.zeros((8, 8), np.float32)
    scores[3, 4], scores[3, 5], scores[2, 4] = 2, 1, 1
    peaks = np.array([[4, 3]])
    np.testing.assert_allclose(soft_argmax(scores, peaks, 1), [[4.25, 2.75]])
    np.testing.assert_array_equal(soft_argmax(scores, peaks, 0), [[4, 3]])
    np.testing.assert_allclose(soft_argmax(scores, np.array([[0, 0], [7, 7]]), 2), [[0, 0], [7, 7]], atol=1e-6)


def test_soft_argmax_finds_the_centre_of_a_blob():
    y, x = np.mgrid[:21, :21].astype(np.float32)
    blob = np.exp(-((x - 10.3) ** 2 + (y - 9.8) ** 2) / 2)
    np.testing.assert_allclose(soft_argmax(blob, np.array([[10, 10]]), 4), [[10.3, 9.8]], atol=5e-3)


def test_soft_argmax_is_the_weighted_mean_of_what_is_in_the_map():
    scores, peaks = noise(9, 11), np.array([[0, 0], [10, 8], [1, 7], [5, 4], [10, 0]])
    y, x = np.mgrid[:9, :11]
    for (px, py), found in zip(peaks.tolist(), soft_argmax(scores, peaks, 2)):
        weight = np.where((abs(x - px) <= 2) & (abs(y - py) <= 2), scores.astype(float), 0)
        np.testing.assert_allclose(found, [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()], 1e-5)


def test_fit_peaks_is_exact_on_a_quadric():
    y, x = np.mgrid[:9, :9].astype(np.float32)
    quadric = 5 - (x - 4.3) ** 2 - 2 * (y - 3.6) ** 2 + 0.5 * (x - 4.3) * (y - 3.6)
    np.testing.assert_allclose(fit_peaks(quadric, np.array([[4, 4]])), [[4.3, 3.6]], atol=1e-4)
    flat_and_edge = fit_peaks(np.ones((9, 9), np.float32), np.array([[4, 4], [0, 8]]))
    np.testing.assert_array_equal(flat_and_edge, [[4, 4], [0, 8]])
    assert fit_peaks(quadric, np.zeros((0, 2), int)).shape == (0, 2)


def slow_sample(descriptors, point):
    size, height, width = descriptors.shape
    x, y = np.clip(point[0], 0, width - 1), np.clip(point[1], 0, height - 1)
    total = np.zeros(size)
    for row in range(height):
        for column in range(width):
            total += descriptors[:, row, column] * max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("shape", [(3, 7, 9), (5, 1, 4), (2, 1, 1)])
@pytest.mark.parametrize("count", [40, 5, 1], ids=["many points", "few points", "one point"])
def test_descriptors_are_bilinear_samples_of_unit_length(shape, count):
    """Many points turn the map round, few do not: see _CELLS_A_POINT."""
    descriptors = noise(*shape) - 0.4
    points = np.random.default_rng(1).uniform(-1.5, 9.5, (count, 2)).astype(np.float32)
    sampled = sample_descriptors(descriptors, points)
    assert sampled.dtype == np.float32
    np.testing.assert_allclose(sampled, [slow_sample(descriptors, point) for point in points], atol=1e-5)
    assert sample_descriptors(descriptors, points[:0]).shape == (0, shape[0])


def test_zero_descriptors_stay_zero():
    assert not sample_descriptors(np.zeros((3, 4, 4), np.float32), np.ones((2, 2), np.float32)).any()


def position_map(height: int, width: int, stride: int) -> np.ndarray:
    """1×3×h×w: (x, y, 1) of each cell's centre in pixels, so that a sample tells where it was taken."""
    y, x = np.mgrid[: height // stride, : width // stride].astype(np.float32) * stride + (stride - 1) / 2
    return np.stack([x, y, np.ones_like(x)])[None]


def test_full_decoder_by_hand():
    scores = np.zeros((1, 1, 32, 48), np.float32)
    for (x, y), score in {(10, 9): 0.5, (11, 10): 0.4, (30, 20): 0.9, (0, 5): 0.8, (20, 25): 0.1}.items():
        scores[0, 0, y, x] = score
    outputs = {"scores": scores, "descriptors": position_map(32, 48, 8)}
    features = decode(outputs, full_metadata(descriptor_size=3), View(32, 48))
    np.testing.assert_array_equal(features.keypoints, [[30, 20], [10, 9]])  # the others: suppressed, border, weak
    np.testing.assert_allclose(features.scores, [0.9, 0.5])
    np.testing.assert_allclose(features.descriptors[:, :2] / features.descriptors[:, 2:], features.keypoints, rtol=1e-5)
    assert len(decode(outputs, full_metadata(), View(32, 48), top_k=1)) == 1
    lenient = {"nms_radius": 0, "border": 0, "threshold": 0}
    assert len(decode(outputs, full_metadata(), View(32, 48), overrides=lenient)) == 5


def test_full_decoder_ignores_padding_and_mask():
    scores = noise(1, 1, 32, 48)
    mask = np.ones((29, 40), np.uint8)
    mask[:, :20] = 0
    features = decode({"scores": scores, "descriptors": noise(1, 4, 4, 6)}, full_metadata(), View(29, 40, mask))
    x, y = features.keypoints.T
    assert len(features) > 5
    assert x.min() >= 20
    assert x.max() < 38
    assert y.max() < 27


def test_cells_decoder_by_hand():
    scores = np.array([[[[0.5, 0.9], [0.0, 0.7]]]], np.float32)
    offsets = np.zeros((1, 2, 2, 2), np.float32)
    offsets[0, :, 0, 1] = 1.0, 0.5  # 11.5 + 7 leaves the image: clamped
    offsets[0, :, 1, 1] = -0.5, 0.25
    outputs = {"scores": scores, "offsets": offsets, "descriptors": noise(1, 4, 4, 4)}
    features = decode(outputs, cells_metadata(), View(16, 16))
    np.testing.assert_allclose(features.keypoints, [[15, 7], [8, 13.25], [3.5, 3.5]])
    np.testing.assert_allclose(features.scores, [0.9, 0.7, 0.5])


def test_cells_descriptors_are_sampled_with_corners_aligned():
    """As KP2D does: the map's first and last values belong to the image's first and last pixel centres."""
    outputs = {
        "scores": np.ones((1, 1, 2, 3), np.float32), "offsets": np.zeros((1, 2, 2, 3), np.float32),
        "descriptors": np.stack([*np.mgrid[:4, :6][::-1], np.ones((4, 6))])[None].astype(np.float32),
    }
    features = decode(outputs, cells_metadata(), View(16, 24))
    expected = features.keypoints * (np.array([5, 3]) / np.array([23, 15]))
    np.testing.assert_allclose(features.descriptors[:, :2] / features.descriptors[:, 2:], expected, rtol=1e-5)
    plain = decode(outputs, cells_metadata(), View(16, 24), overrides={"align_corners": False})
    np.testing.assert_allclose(
        plain.descriptors[:, :2] / plain.descriptors[:, 2:], np.clip((features.keypoints - 1.5) / 4, 0, None), rtol=1e-5
    )


def test_cells_decoder_leaves_padding_and_mask_out():
    outputs = {
        "scores": noise(1, 1, 4, 4), "offsets": noise(1, 2, 4, 4) * 2 - 1, "descriptors": noise(1, 4, 8, 8),
    }
    features = decode(outputs, cells_metadata(), View(24, 17))
    assert len(features) == 3 * 3
    assert (features.keypoints <= [16, 23]).all()
    mask = np.zeros((24, 17), np.uint8)
    assert len(decode(outputs, cells_metadata(), View(24, 17, mask))) == 0
    mask[:, 8:] = 1
    x = decode(outputs, cells_metadata(), View(24, 17, mask)).keypoints[:, 0]
    assert 0 < len(x) < 9
    assert x.min() >= 7.5


def test_cells_suppression_keeps_the_best_of_each_neighbourhood():
    scores = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4) / 16
    outputs = {"scores": scores, "offsets": np.zeros((1, 2, 4, 4), np.float32), "descriptors": noise(1, 4, 8, 8)}
    features = decode(outputs, cells_metadata(), View(32, 32), overrides={"nms_radius": 9})
    np.testing.assert_allclose(features.keypoints, [[27.5, 27.5]])
    assert len(decode(outputs, cells_metadata(), View(32, 32), top_k=3)) == 3


def test_of_two_cells_that_point_at_one_pixel_the_better_stays():
    offsets = np.zeros((1, 2, 1, 2), np.float32)
    offsets[0, 0, 0] = 4 / 7, -4 / 7  # both reach the middle
    outputs = {"scores": np.array([[[[0.3, 0.8]]]], np.float32), "offsets": offsets, "descriptors": noise(1, 4, 2, 4)}
    for order in ([0, 1], [1, 0]):
        swapped = {**outputs, "scores": outputs["scores"][..., order]}
        assert len(decode(swapped, cells_metadata(), View(8, 16))) == 2
        features = decode(swapped, cells_metadata(), View(8, 16), overrides={"nms_radius": 1})
        np.testing.assert_allclose(features.keypoints, [[7.5, 3.5]], atol=1e-5)
        np.testing.assert_allclose(features.scores, [0.8])


def test_features_share_no_memory_with_the_outputs():
    """An engine writes its next outputs where these lie."""
    full = {"scores": noise(1, 1, 32, 48), "descriptors": noise(1, 4, 4, 6)}
    cells = {"scores": noise(1, 1, 4, 6), "offsets": noise(1, 2, 4, 6), "descriptors": noise(1, 4, 8, 12)}
    for outputs, metadata in ((full, full_metadata()), (cells, cells_metadata())):
        features = decode(outputs, metadata, View(32, 48))
        for name in ("keypoints", "scores", "descriptors"):
            assert not any(np.shares_memory(getattr(features, name), output) for output in outputs.values())
    points = {"point_descriptors": noise(1, 7, 4)}
    decoder, parameters = find_decoder(full_metadata(decoder="points", decoder_parameters={}), {})
    described = decoder.describe(points, full_metadata(), parameters, np.zeros((7, 2), np.float32))
    assert not np.shares_memory(described, points["point_descriptors"])


def test_unknown_decoders_and_parameters_are_named():
    with pytest.raises(InputError, match=r"unknown decoder .*'sparse'; choose one of: cells, full"):
        find_decoder(full_metadata(decoder="sparse"), {})
    with pytest.raises(InputError, match=r"decoder 'full'.*'radius'"):
        find_decoder(full_metadata(decoder_parameters={"radius": 3}), {})


@pytest.mark.parametrize(("metadata", "name", "value"), [
    (full_metadata, "nms_radius", "a"), (full_metadata, "nms_radius", -1), (full_metadata, "border", 0.5),
    (full_metadata, "threshold", None), (cells_metadata, "cell", 0), (cells_metadata, "align_corners", "a"),
])
def test_parameters_that_cannot_be_are_named(metadata, name, value):
    with pytest.raises(InputError, match=name):
        find_decoder(metadata(decoder_parameters={name: value}), {})


def test_peaks_match_opencv_corners():
    """The same strongest corners as cv2.goodFeaturesToTrack, which has its own suppression."""
    image = cv2.GaussianBlur((noise(60, 80) * 255).astype(np.uint8), (0, 0), 2)
    strength = cv2.cornerMinEigenVal(image, 5)
    peaks, _ = find_peaks(strength, 5, radius=1, border=1)
    theirs = cv2.goodFeaturesToTrack(image, 5, 1e-4, 0, blockSize=5).reshape(-1, 2)
    np.testing.assert_array_equal(peaks, theirs)
