"""Homographic adaptation: what it finds, what it keeps on disk, and what it does after a kill."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from kp_frontend.errors import InputError
from kp_training.data.images import Chosen
from kp_training.data.procedural import ProceduralImages
from kp_training.labels import homographic
from kp_training.labels.homographic import AdaptationConfig, adapt, average_scores, label_images

SMALL = AdaptationConfig(warps=6, height=96, width=128, fewest=0)
CPU = torch.device("cpu")


class CornerDetector(nn.Module):
    """Harris's response, squashed: a detector that needs no training.  calls: views it has seen."""

    def __init__(self, gain: float = 2e4) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls = 0

    def forward(self, image):
        self.calls += len(image)
        response = [cv2.cornerHarris(view[0].float().numpy(), 3, 3, 0.04) for view in image]
        return (torch.sigmoid(self.gain.float() * torch.from_numpy(np.stack(response))[:, None] - 4),)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(homographic, "half_precision", lambda device: torch.autocast(device.type, enabled=False))


def _square() -> np.ndarray:
    image = np.full((96, 128), 60, np.uint8)
    image[30:61, 40:91] = 200
    return cv2.GaussianBlur(image, (0, 0), 0.8)


CORNERS = {(40, 30), (90, 30), (40, 60), (90, 60)}


def test_corners_of_a_square():
    config = AdaptationConfig(warps=30, threshold=0.3, fewest=0)
    points = adapt(CornerDetector(), _square(), config, np.random.default_rng(1))
    assert len(points) == 4
    for x, y, strength in points:
        assert min(max(abs(x - u), abs(y - v)) for u, v in CORNERS) <= 1
        assert 0 < strength <= 1
    assert (np.diff(points[:, 2]) <= 0).all(), "best first"


def test_fewest_and_most_points():
    """Above the threshold are the four corners; below it, `fewest` still counts; never more than `points`."""
    counts = []
    for fewest, most in ((0, 600), (3, 600), (6, 600), (6, 5), (0, 2)):
        config = replace(SMALL, warps=4, threshold=0.3, fewest=fewest, points=most)
        points = adapt(CornerDetector(), _square(), config, np.random.default_rng(1))
        assert (np.diff(points[:, 2]) <= 0).all()
        counts.append(len(points))
    assert counts == [4, 4, 6, 5, 2]


def test_points_of_a_shrunken_image_are_in_its_own_pixels():
    large = cv2.resize(_square(), (512, 384), interpolation=cv2.INTER_LINEAR)
    points = adapt(CornerDetector(), large, replace(SMALL, warps=10, threshold=0.3),
                   np.random.default_rng(1))
    assert len(points) == 4
    for x, y, _ in points:  # a pixel of the small image is 4 of the large one's, centres at 4i + 1.5
        assert min(max(abs(x - (4 * u + 1.5)), abs(y - (4 * v + 1.5))) for u, v in CORNERS) <= 4
    assert set(np.unique((points[:, :2] - 1.5) % 4)) == {0}


def test_sizes_are_whole_cells():
    seen = []

    def detect(views):
        seen.append(tuple(views.shape[2:]))
        return (torch.zeros_like(views),)

    for shape in ((300, 500), (64, 71), (97, 33)):
        adapt(detect, np.zeros(shape, np.uint8), replace(SMALL, warps=1, multiple=32),
              np.random.default_rng(0))
    assert seen == [(96, 128), (64, 64), (96, 32)]


def test_average_is_the_mean_over_the_views_that_see_a_pixel():
    """Views shifted by whole pixels, each with its own constant: every pixel has the mean of those that see it."""
    shifts = [(0, 0), (20, 0), (0, -12)]
    image_from_views = torch.stack([torch.tensor([[1.0, 0, x], [0, 1, y], [0, 0, 1]]) for x, y in shifts])
    levels = torch.tensor([0.2, 0.5, 0.8])
    result = average_scores(lambda views: (levels.reshape(3, 1, 1, 1).expand_as(views),), torch.rand(1, 1, 40, 64),
                            image_from_views, margin=2)
    expected = np.zeros((40, 64))
    for i, j in np.ndindex(40, 64):
        values = [float(level) for (x, y), level in zip(shifts, levels)
                  if 2 <= j - x <= 61 and 2 <= i - y <= 37]
        expected[i, j] = np.mean(values) if values else 0
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_views_show_what_they_should():
    """A detector that gives the view itself: the average is the image."""
    image = torch.from_numpy(cv2.GaussianBlur(np.random.default_rng(0).random((64, 96)), (0, 0), 4)).float()[None, None]
    rng = np.random.default_rng(3)
    warps = np.stack([homographic._random_warp(rng, 64, 96) for _ in range(8)])
    result = average_scores(lambda views: (views,), image, torch.from_numpy(warps).float(), margin=0)
    seen = result > 0
    assert seen.float().mean() > 0.9
    assert (result - image[0, 0])[seen].abs().max() < 0.1 * float(image.max() - image.min())


def _label(detector, cache, count=5, config=SMALL, seed=0, images=None):
    return label_images(detector, images or ProceduralImages(7, (96, 128)), count, config, seed, cache, CPU)


def _same(labels, others):
    return all(np.array_equal(getattr(labels, name), getattr(others, name)) for name in ("indices", "starts", "points"))


def test_labels_are_kept(tmp_path):
    detector = CornerDetector()
    made = _label(detector, tmp_path)
    assert detector.calls == 5 * SMALL.warps
    assert len(made.points) == made.starts[-1] > 5
    kept = _label(detector, tmp_path)
    assert detector.calls == 5 * SMALL.warps, "nothing was made again"
    assert _same(made, kept)


@pytest.mark.parametrize("change", [
    {"detector": CornerDetector(3e4)}, {"config": replace(SMALL, warps=7)}, {"seed": 1},
    {"images": ProceduralImages(7, (96, 136))},
])
def test_labels_of_anything_else_are_made_anew(tmp_path, change):
    _label(CornerDetector(), tmp_path, count=2)
    detector = change.pop("detector", CornerDetector())
    _label(detector, tmp_path, count=2, **change)
    assert detector.calls > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(homographic, "SHARD", 2)
    whole = _label(CornerDetector(), tmp_path / "whole")
    killed = CornerDetector()
    inner = killed.forward

    def forward(image):
        if killed.calls >= 3 * SMALL.warps:
            raise KeyboardInterrupt
        return inner(image)

    monkeypatch.setattr(killed, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        _label(killed, tmp_path / "killed")
    names = [file.name for folder in (tmp_path / "killed").iterdir() for file in folder.iterdir()]
    assert names == ["000000-2.npz"], "one whole file, and nothing half written"
    resumed = CornerDetector()
    assert _same(_label(resumed, tmp_path / "killed"), whole)
    assert resumed.calls == 3 * SMALL.warps


def test_a_file_that_was_cut_short_is_made_again(tmp_path):
    made = _label(CornerDetector(), tmp_path)
    file, = tmp_path.glob("*/*.npz")
    for content in (file.read_bytes()[:-100], b"", b"not a zip"):
        file.write_bytes(content)
        detector = CornerDetector()
        assert _same(_label(detector, tmp_path), made)
        assert detector.calls == 5 * SMALL.warps


def test_nothing_is_unpickled(tmp_path):
    _label(CornerDetector(), tmp_path)
    file, = tmp_path.glob("*/*.npz")
    np.savez(file, counts=np.array([print] * 5, object), points=np.zeros((5, 3)))
    detector = CornerDetector()
    _label(detector, tmp_path)
    assert detector.calls == 5 * SMALL.warps


def test_more_images_keep_the_labels_of_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(homographic, "SHARD", 2)
    few = _label(CornerDetector(), tmp_path, count=4)
    detector = CornerDetector()
    more = _label(detector, tmp_path, count=6)
    assert detector.calls == 2 * SMALL.warps
    assert np.array_equal(more.points[: len(few.points)], few.points)
    assert np.array_equal(more.indices[:4], few.indices)


def test_labels_belong_to_their_image(tmp_path):
    images = ProceduralImages(7, (96, 128))
    labels = _label(CornerDetector(), tmp_path, images=images)
    chosen = Chosen(images, labels.indices)
    assert len(chosen) == 5
    assert len(set(labels.indices)) == 5
    for position in range(5):
        index = int(labels.indices[position])
        assert np.array_equal(chosen[position], images[index])
        grey = cv2.cvtColor(images[index], cv2.COLOR_BGR2GRAY)
        again = adapt(CornerDetector(), grey, SMALL, np.random.default_rng([0, 5, index]))
        np.testing.assert_array_equal(labels(position), again)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"labels cannot be kept in .*No space left on device.*KP_FRONTEND_CACHE"):
        _label(CornerDetector(), tmp_path)
    assert not list(tmp_path.glob("*/*"))


def test_a_detector_that_finds_nothing_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        config = replace(SMALL, warps=2, threshold=0.5)
        labels = _label(CornerDetector(0.0), tmp_path, config=config)
    assert len(labels.points) == 0
    assert labels(3).shape == (0, 3)
    assert "found 0 points in 5 images" in caplog.text


def test_files_are_written_beside_and_renamed(tmp_path, monkeypatch):
    seen = []
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (seen.append((source, target)), rename(source, target)))
    _label(CornerDetector(), tmp_path)
    (source, target), = seen
    assert source != target
    assert source.parent == target.parent
