"""Synthetic shapes: their corners are where the picture has corners, and nowhere else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from kp_frontend.errors import InputError
from kp_training.data import synthetic_shapes
from kp_training.data.canvas import CONTRAST, Canvas
from kp_training.data.synthetic_shapes import SHAPES, ShapesConfig, SyntheticShapes, contact_sheet
from kp_training.geometry.homography import SuperPointHomographies, view_corners, warp_points

PLAIN = {"style": "off", "patch": 0.0}


def _canvas(view_from_plane: np.ndarray | None = None, height: int = 120, width: int = 160, seed: int = 0) -> Canvas:
    view = np.eye(3) if view_from_plane is None else view_from_plane
    canvas = Canvas(height, width, view, np.random.default_rng(seed))
    canvas.image[:] = 100
    return canvas


def _square(x: float, y: float, size: float) -> np.ndarray:
    return np.array([[x, y], [x + size, y], [x + size, y + size], [x, y + size]])


def test_the_nine_shapes_of_the_paper():
    assert list(SHAPES) == ["lines", "polygon", "multiple_polygons", "ellipses", "star", "checkerboard", "stripes",
                            "cube", "gaussian_noise"]


@pytest.mark.parametrize("name", SHAPES)
def test_items_depend_on_seed_and_number_alone(name):
    config = ShapesConfig(shapes=(name,))
    drawings = SyntheticShapes(config, seed=3)
    drawings[0]
    item = drawings[1]
    assert (item.image.shape, item.labels.shape, item.mask.shape) == ((1, 120, 160), (120, 160), (120, 160))
    assert (item.image.dtype, item.labels.dtype, item.mask.dtype) == (torch.uint8, torch.uint8, torch.bool)
    assert item.mask.all()
    assert set(item.labels.unique().tolist()) <= {0, 255}
    for ours, again in zip(item, SyntheticShapes(config, seed=3)[1]):
        torch.testing.assert_close(ours, again)
    assert not torch.equal(item.image, SyntheticShapes(config, seed=4)[1].image)


def test_counts_of_corners():
    counts = {name: [int((SyntheticShapes(ShapesConfig(shapes=(name,), **PLAIN))[number].labels > 0).sum())
                     for number in range(12)] for name in SHAPES}
    assert not any(counts["ellipses"] + counts["gaussian_noise"]), "nothing round or random is a corner"
    assert counts["cube"] == [7] * 12, "three faces show seven corners; none is hidden or off the picture here"
    assert all(4 <= count <= 7 for count in counts["star"]), "three to six arms and the middle"
    assert all(count % 2 == 0 or count < 21 for count in counts["lines"])
    assert all(min(counts[name]) >= 1 for name in ("lines", "multiple_polygons", "checkerboard"))


def test_drawings_keep_plane_coordinates_and_pixel_centres():
    """A square of 21 whose corner lies on the middle of a fine pixel, (20.125, 10.375), has its centre 10.5 further."""
    canvas = _canvas()
    canvas.fill(_square(20.125, 10.375, 21), 200)
    excess = (canvas.finished().astype(float) - 100) / 100
    y, x = np.indices(excess.shape)
    assert (excess * x).sum() / excess.sum() == pytest.approx(30.625, abs=0.01)
    assert (excess * y).sum() / excess.sum() == pytest.approx(20.875, abs=0.01)
    assert np.sqrt(excess.sum()) == pytest.approx(21.25, abs=0.1), "the outline itself is painted"


def test_outlines_and_corners_go_through_the_same_homography():
    view_from_plane = np.array([[0.8, 0.3, 10], [-0.2, 0.9, 25], [5e-4, 1e-3, 1]])
    canvas = _canvas(view_from_plane)
    canvas.fill(_square(40, 30, 50), 220)
    canvas.mark(_square(40, 30, 50))
    marked = canvas.corners[0].astype(np.float32)
    refined = cv2.cornerSubPix(canvas.finished(), marked[:, None].copy(), (4, 4), (-1, -1), (3, 30, 0.01))[:, 0]
    np.testing.assert_allclose(refined, marked, atol=0.8)


def test_views_show_what_the_homography_says():
    drawings = SyntheticShapes(ShapesConfig(height=120, width=160, patch=0.8))
    view_from_plane = drawings._view_from_plane(np.random.default_rng(5))
    seen = SuperPointHomographies(patch=0.8).sample(np.random.default_rng(5)) * [80, 60] + [79.5, 59.5]
    np.testing.assert_allclose(warp_points(view_from_plane, seen), view_corners(120, 160), atol=1e-3)


def test_corners_are_right_to_a_fraction_of_a_pixel():
    errors = []
    for seed in range(8):
        canvas = Canvas(120, 160, np.eye(3), np.random.default_rng(seed))
        synthetic_shapes.checkerboard(canvas)
        corners = canvas.corners[0].astype(np.float32)
        inside = ((corners > 8) & (corners < [151, 111])).all(1)
        refined = cv2.cornerSubPix(canvas.finished(), corners[inside][:, None].copy(), (3, 3), (-1, -1), (3, 30, 0.01))
        errors.extend(refined[:, 0] - corners[inside])
    assert len(errors) > 50
    assert np.median(np.linalg.norm(errors, axis=1)) < 0.25
    assert np.abs(np.mean(errors, 0)).max() < 0.1, "to no side"


@pytest.mark.parametrize("name", ["polygon", "multiple_polygons", "star", "checkerboard", "stripes", "cube", "lines"])
@pytest.mark.parametrize("patch", [0.0, 0.8])
def test_labels_are_corners_and_corners_are_labelled(name, patch):
    """Every label stands on a corner response, and every strong response away from the rim has a label."""
    drawings = SyntheticShapes(ShapesConfig(shapes=(name,), style="off", patch=patch), seed=1)
    on, off, found, missed = [], [], 0, 0
    for number in range(10):
        item = drawings[number]
        image, labels = item.image[0].numpy(), item.labels.numpy()
        response = cv2.cornerMinEigenVal(image, 3)
        near = cv2.dilate(response, np.ones((5, 5)))
        on.extend(near[labels > 0])
        off.append(np.median(response))
        around = cv2.dilate(labels, np.ones((7, 7))) > 0
        strong = cv2.goodFeaturesToTrack(image, 60, 0.25, 4)
        for x, y in np.empty((0, 2)) if strong is None or response.max() < 1e-3 else strong[:, 0].astype(int):
            if 5 <= x < 155 and 5 <= y < 115:
                found, missed = found + 1, missed + (not around[y, x])
    assert np.percentile(on, 10) > 20 * max(max(off), 1e-6)
    assert found > 5
    # Between the arms of a star there are corners a few pixels off its middle.
    assert missed <= (0.25 if name == "star" else 0.1) * found


def test_shapes_do_not_touch():
    canvas = _canvas()
    assert canvas.claim(_square(20, 20, 20))
    assert not canvas.claim(_square(30, 30, 20)), "they overlap"
    assert not canvas.claim(_square(22, 22, 4)), "one inside the other would hide nothing, but touch"
    assert not canvas.claim(_square(42, 20, 20)), "two pixels between them blur into one"
    assert canvas.claim(_square(60, 20, 20))


def test_what_the_view_cannot_show_is_not_drawn():
    canvas = _canvas(np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1.0]]))  # its horizon is at x = 50
    assert not canvas.claim(_square(40, 20, 20))
    assert canvas.claim(_square(20, 20, 20))


def test_levels_stand_out():
    canvas = _canvas()
    canvas.image[:, canvas.image.shape[1] // 2 :] = 150
    levels = np.array([canvas.level(np.array([[40, 60], [120, 60.0]]), 220.0) for _ in range(300)])
    assert np.abs(levels[:, None] - [100, 150, 220]).min() >= CONTRAST
    regions = [levels <= 70, (levels >= 180) & (levels <= 190), levels >= 250]
    assert np.sum(regions, 0).all(), "what is left between 100, 150 and 220"
    assert all(region.any() for region in regions)


def test_polygons_have_clear_corners():
    rng = np.random.default_rng(0)
    for _ in range(100):
        outline = synthetic_shapes._blob(rng, 0.2)
        back, ahead = np.roll(outline, 1, 0) - outline, np.roll(outline, -1, 0) - outline
        cosines = (back * ahead).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(ahead, axis=1)
        angles = np.degrees(np.arccos(cosines))
        assert angles.min() >= 24.999
        assert angles.max() <= 150.001
        assert np.linalg.norm(ahead, axis=1).min() > 0.2
        assert 3 <= len(outline) <= 7
        assert cv2.contourArea(outline.astype(np.float32), oriented=True) > 0


def test_all_shapes_come_up_and_collate():
    drawings = SyntheticShapes(ShapesConfig(height=48, width=64), seed=0)
    batch = default_collate([drawings[number] for number in range(20)])
    assert batch.image.shape == (20, 1, 48, 64)
    empty = (batch.labels.flatten(1) == 0).all(1).float().mean()
    assert 0 < empty < 0.6, "two shapes of nine have no corners"


def test_contact_sheet_has_a_row_for_each_shape():
    sheet = contact_sheet(ShapesConfig(height=24, width=32, shapes=("cube", "star")), columns=3, zoom=2)
    assert sheet.shape == (2 * 24 * 2, 3 * 32 * 2, 3)
    assert (sheet == (0, 255, 0)).all(-1).any(), "corners are circled"


def test_unknown_and_no_shapes_are_refused():
    with pytest.raises(InputError, match="unknown synthetic shape 'hexagon'; choose one of: checkerboard, cube"):
        SyntheticShapes(ShapesConfig(shapes=("hexagon",)))
    with pytest.raises(InputError, match="no synthetic shapes"):
        SyntheticShapes(ShapesConfig(shapes=()))
