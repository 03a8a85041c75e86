"""Homographies, sampling, augmentation and training pairs."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kp_training import augment
from kp_training.data import corners
from kp_training.data.corners import CornerPoints, averaged_corners, draw_labels
from kp_training.data.pairs import GEOMETRIES, HomographyPairs, PairConfig
from kp_training.data.procedural import ProceduralImages
from kp_training.geometry import homography as geometry
from kp_training.geometry import sampling


@pytest.mark.parametrize("seed", range(20))
def test_kp2d_homography_keeps_the_source_inside_the_target(seed):
    rng = np.random.default_rng(seed)
    corners = geometry.Kp2dHomographies().sample(rng)
    assert np.abs(corners).max() <= 1 + 1e-9
    assert cv2.contourArea(corners.astype(np.float32)) > 0.3, "a view, not a sliver, and not mirrored away"


def test_wide_homographies_turn_zoom_and_stay_near_when_easy():
    corners = [geometry.WideHomographies(turn_share=0.5).sample(np.random.default_rng(seed)) for seed in range(400)]
    edges = np.array([corner[1] - corner[0] for corner in corners])
    angles = np.abs(np.degrees(np.arctan2(edges[:, 1], edges[:, 0])))
    areas = np.array([cv2.contourArea(corner.astype(np.float32)) for corner in corners]) / 4
    assert (angles > 90).mean() == pytest.approx(0.25, abs=0.08)
    assert areas.min() < 0.45
    assert areas.max() > 2.2
    near = [np.abs(corner - geometry._CORNERS).max() for corner in corners]
    assert np.mean(np.array(near) < 0.2) > 0.03, "small baselines must be common enough to learn"


def test_hardness_makes_wide_pairs_wider():
    def spread(hardness):
        wide = geometry.WideHomographies(turn_share=0, hardness=hardness)
        corners = [wide.sample(np.random.default_rng(seed)) for seed in range(200)]
        return np.abs(np.array(corners) - geometry._CORNERS).max(axis=(1, 2)).mean()

    assert spread(2) > 1.15 * spread(1)


def test_homography_from_corners_maps_corner_to_corner():
    source, target = geometry.view_corners(10, 20), np.array([[0, 0], [5, 1], [6, 7], [-1, 4.0]])
    homography = geometry.homography_from_corners(source, target)
    np.testing.assert_allclose(geometry.warp_points(homography, source), target, atol=1e-5)


def test_points_behind_the_horizon_are_nan():
    homography = np.array([[1, 0, 0], [0, 1, 0], [0.1, 0, 1.0]])
    warped = geometry.warp_points(homography, np.array([[0.0, 0], [-20, 0]]))
    np.testing.assert_allclose(warped[0], 0)
    assert np.isnan(warped[1]).all()


def test_scaled_homography_agrees_with_resized_images():
    """A bright dot stays where the scaled identity says, after shrinking both images by different factors."""
    image = np.zeros((80, 120), np.float32)
    image[36:44, 56:64] = 255  # centre (59.5, 39.5)
    small0 = cv2.resize(image, (60, 40), interpolation=cv2.INTER_AREA)
    small1 = cv2.resize(image, (30, 20), interpolation=cv2.INTER_AREA)
    homography = geometry.scale_homography(np.eye(3), np.array([0.5, 0.5]), np.array([0.25, 0.25]))
    np.testing.assert_allclose(geometry.warp_points(homography, _centroid(small0)), _centroid(small1), atol=1e-5)


def _centroid(image: np.ndarray) -> np.ndarray:
    y, x = np.indices(image.shape)
    return np.array([[(x * image).sum(), (y * image).sum()]]) / image.sum()


def test_sample_knows_where_cells_lie():
    """A map that holds its own cells' centres gives back the point that it is sampled at."""
    for stride in (1, 4, 8):
        centres = sampling.pixel_grid(6, 7) * stride + (stride - 1) / 2
        points = torch.tensor([[[2.5 * stride, 3.1 * stride], [stride * 1.0, stride * 4.0]]])
        torch.testing.assert_close(sampling.sample(centres.permute(2, 0, 1)[None], points, stride), points)


def test_sample_aligned_puts_the_last_cell_on_the_last_pixel():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    points = torch.tensor([[[0.0, 0.0], [31.0, 23.0], [31.0, 0.0]]])
    torch.testing.assert_close(sampling.sample_aligned(maps, points, 24, 32)[0, :, 0], torch.tensor([0.0, 11.0, 3.0]))


def test_soft_argmax_is_the_runtimes():
    decoding = pytest.importorskip("kp_frontend.decoding")
    rng = np.random.default_rng(0)
    scores = rng.random((20, 30), np.float32)
    points = np.array([[3, 4], [0, 0], [29, 19], [15, 10]])
    ours = sampling.soft_argmax(torch.from_numpy(scores)[None, None], torch.from_numpy(points)[None].float(), 2)[0]
    np.testing.assert_allclose(ours.numpy(), decoding.soft_argmax(scores, points, 2), atol=1e-5)


def test_torch_and_numpy_warp_alike():
    homography = np.array([[1.1, 0.1, 3], [-0.2, 0.9, 5], [1e-3, 2e-3, 1]])
    points = np.random.default_rng(1).uniform(0, 100, (5, 2))
    warped = sampling.warp_points(torch.from_numpy(homography)[None].float(), torch.from_numpy(points)[None].float())
    np.testing.assert_allclose(warped[0].numpy(), geometry.warp_points(homography, points), atol=1e-3)


@pytest.mark.parametrize("name", ["wide", "kp2d"])
def test_pairs_agree_with_their_homography(name):
    """Warping view 0 by the homography gives view 1, where both show the photograph."""
    config = PairConfig(geometry=name, style="off", height=96, width=128, turn_share=0.3)
    pairs = HomographyPairs(ProceduralImages(4), config, seed=1)
    errors = []
    for number in range(8):
        batch = pairs[number]
        size = (config.width, config.height)
        view0, view1 = (image[0].numpy().astype(np.float32) for image in (batch.image0, batch.image1))
        homography = batch.homography.numpy().astype(np.float64)
        warped = cv2.warpPerspective(view0, homography, size)
        shown = cv2.warpPerspective(batch.mask0.numpy().astype(np.float32), homography, size)
        seen = batch.mask1.numpy() & (shown > 0.99)
        shuffled = np.roll(warped, 9, axis=1)
        if seen.mean() > 0.1:
            errors.append((np.abs(warped - view1)[seen].mean(), np.abs(shuffled - view1)[seen].mean()))
    right, wrong = np.array(errors).T
    assert len(errors) >= 4
    assert np.median(right) < 0.5 * np.median(wrong)


def test_pairs_depend_on_seed_and_number_alone():
    config = PairConfig(height=32, width=32)
    first, again = (HomographyPairs(ProceduralImages(3), config, seed=5) for _ in range(2))
    first[0], first[1]
    for ours, theirs in zip(first[7], again[7]):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first[7].image0, HomographyPairs(ProceduralImages(3), config, seed=6)[7].image0)


def test_each_epoch_shows_every_image_once():
    class Counted(ProceduralImages):
        asked: list[int] = []  # noqa: RUF012

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    pairs = HomographyPairs(Counted(5), PairConfig(height=32, width=32), seed=0)
    for number in range(10):
        pairs[number]
    assert sorted(Counted.asked[:5]) == sorted(Counted.asked[5:]) == list(range(5))
    assert Counted.asked[:5] != Counted.asked[5:]


def test_corners_are_made_once_and_survive_a_cut_file(tmp_path, monkeypatch):
    images = ProceduralImages(2, (96, 128))
    points = CornerPoints(images, tmp_path)
    first = points(1)
    assert first.shape[1] == 3
    assert len(first) > 20
    np.testing.assert_array_equal(first, averaged_corners(cv2.cvtColor(images[1], cv2.COLOR_BGR2GRAY),
                                                          np.random.default_rng([3, 1])))
    file, = points.folder.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(corners, "averaged_corners", None)
        np.testing.assert_array_equal(CornerPoints(ProceduralImages(2, (96, 128)), tmp_path)(1), first)
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(points(1), first)
    np.testing.assert_array_equal(np.load(file), first)
    assert CornerPoints(ProceduralImages(3, (96, 128)), tmp_path).folder != points.folder
    np.testing.assert_array_equal(CornerPoints(images, Path(os.devnull))(1), first)  # takes no file


def test_labels_move_with_the_view():
    """A lone corner of the photograph is labelled where each view shows it."""
    photo = np.full((200, 260, 3), 60, np.uint8)
    photo[100:, 130:] = 200
    points = averaged_corners(photo[..., 0], np.random.default_rng(0))
    np.testing.assert_allclose(points[0, :2], [130, 100], atol=2)
    labels = draw_labels(np.array([[3.4, 2.0], [np.nan, 1], [50, 50]]), np.array([1.0, 1, 1]), 8, 10)
    assert np.argwhere(labels).tolist() == [[2, 3]]
    assert labels[2, 3] == 255


@pytest.mark.parametrize("effect", [effect for style in augment.STYLES.values() for effect, _ in style])
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_effects_keep_shape_and_type_and_do_something(effect, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    results = [effect(image, np.random.default_rng(seed)) for seed in range(6)]
    assert all(result.shape == shape and result.dtype == np.uint8 for result in results)
    assert any((result != image).any() for result in results)
    np.testing.assert_array_equal(results[0], effect(image, np.random.default_rng(0)))


def test_blur_does_not_move_the_image():
    image = np.zeros((41, 41), np.uint8)
    image[20, 20] = 255
    for effect in (augment.blur, augment.motion):
        for seed in range(10):
            blurred = effect(image, np.random.default_rng(seed)).astype(float)
            np.testing.assert_allclose(_centroid(blurred), 20, atol=0.35)


def test_geometry_names_are_checked():
    with pytest.raises(ValueError, match=r"pair geometry 'flat'.*kp2d, kp2d_paper, silk, superpoint, wide"):
        HomographyPairs(ProceduralImages(1), PairConfig(geometry="flat"), 0)
    assert set(GEOMETRIES) == {"kp2d", "kp2d_paper", "silk", "superpoint", "wide"}
