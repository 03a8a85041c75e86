"""Effects and homographies of SuperPoint and SiLK: ranges, centres, shares."""

from __future__ import annotations

import numpy as np
import pytest

from kp_training import augment
from kp_training.data.pairs import GEOMETRIES, PairConfig
from kp_training.geometry.homography import SilkHomographies, SuperPointHomographies, view_corners, warp_points

STYLES = ("superpoint", "silk", "silk_hpatches")
DRAWS = 300


def _textured(channels: int | None = None, size: int = 48) -> np.ndarray:
    shape = (size, size + 16) if channels is None else (size, size + 16, channels)
    return np.random.default_rng(0).integers(60, 200, shape, np.uint8)


def _settings(style: str, effect: str) -> dict:
    """What `style` gives to `effect`, and fails where it does not use it."""
    (found,) = (entry.keywords for entry, _ in augment.STYLES[style] if entry.func.__name__ == effect)
    return found


def _results(effect, image: np.ndarray, **settings) -> np.ndarray:
    return np.array([effect(image, np.random.default_rng(seed), **settings) for seed in range(DRAWS)]).astype(float)


def _dot(size: int = 41) -> np.ndarray:
    dot = np.zeros((size, size), np.uint8)
    dot[size // 2, size // 2] = 255
    return dot


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("channels", [None, 3])
def test_styles_keep_the_kind_of_image_and_depend_on_the_generator_alone(style, channels):
    image = _textured(channels)
    kept = image.copy()
    for seed in range(30):
        lit = augment.apply_style(image, style, np.random.default_rng(seed))
        assert (lit.shape, lit.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(lit, augment.apply_style(image, style, np.random.default_rng(seed)))
    np.testing.assert_array_equal(image, kept)


def test_share_of_images_that_silk_leaves_alone():
    """A twentieth is not touched at all, and of the others those whom every effect passes by."""
    image = _textured(size=16)
    same = [(augment.apply_style(image, "silk", np.random.default_rng(seed)) == image).all() for seed in range(3000)]
    assert np.mean(same) == pytest.approx(0.05 + 0.95 * 0.9**3 * 0.8 * 0.5**2, abs=0.02)


def test_superpoint_always_applies_every_effect():
    assert {share for _, share in augment.STYLES["superpoint"]} == {1.0}
    image = _textured()
    assert not any((augment.apply_style(image, "superpoint", np.random.default_rng(seed)) == image).all()
                   for seed in range(50))


def test_brightness_range():
    levels = _results(augment.brightness, np.full((2, 2), 128, np.uint8), **_settings("superpoint", "brightness"))
    assert (levels.min(), levels.max()) == (pytest.approx(53, abs=2), pytest.approx(203, abs=2))


def test_contrast_range_and_centre():
    image = np.array([[118, 138]], np.uint8)
    levels = _results(augment.contrast, image, **_settings("superpoint", "contrast"))
    np.testing.assert_allclose(levels.mean((1, 2)), 128, atol=0.51)
    spread = np.diff(levels, axis=2) / 20
    assert (spread.min(), spread.max()) == (pytest.approx(0.3, abs=0.06), pytest.approx(1.8, abs=0.06))


@pytest.mark.parametrize(("style", "slope", "offset"), [
    ("silk", (0.5, 1.3), (-0.3, 0.0)), ("silk_hpatches", (0.5, 1.5), (-0.5, 0.5)),
])  # fmt: skip
def test_linear_is_slope_and_offset(style, slope, offset):
    image = np.array([[125, 135]], np.uint8)
    dark, bright = _results(augment.linear, image, **_settings(style, "linear"))[:, 0].T
    whole = (dark > 0) & (bright < 255)
    slopes = (bright - dark)[whole] / 10
    offsets = ((dark + bright)[whole] / 2 - 130 * slopes) / 255
    assert (slopes.min(), slopes.max()) == (pytest.approx(slope[0], abs=0.15), pytest.approx(slope[1], abs=0.15))
    assert offsets.min() > offset[0] - 0.06
    assert offsets.max() < offset[1] + 0.06


def test_power_brightens_between_its_exponents():
    levels = _results(augment.power, np.full((1, 1), 64, np.uint8), **_settings("silk", "power"))
    assert levels.min() == pytest.approx(255 * (64 / 255) ** 0.65, abs=3)
    assert levels.max() == pytest.approx(255 * (64 / 255) ** 0.15, abs=3)


def test_darken_lowers_the_value_and_keeps_hue_and_saturation():
    grey = _results(augment.darken, np.full((1, 1), 200, np.uint8), **_settings("silk", "darken"))
    assert (grey.min(), grey.max()) == (pytest.approx(100, abs=1), pytest.approx(160, abs=1))
    color = np.array([[[40, 100, 200]]], np.uint8)
    assert (_results(augment.darken, color, low=100, high=100) == [20, 50, 100]).all()
    assert not _results(augment.darken, np.full((1, 1), 90, np.uint8), low=100, high=100).any()


@pytest.mark.parametrize(("style", "least", "most"), [
    ("superpoint", 0, 15), ("silk", 10**0.5, 50**0.5), ("silk_hpatches", 0, 10.2),
])  # fmt: skip
def test_sensor_noise_range(style, least, most):
    flat = np.full((40, 40), 128, np.uint8)
    noisy = _results(augment.sensor_noise, flat, **_settings(style, "sensor_noise"))
    deviations = noisy.std((1, 2))
    assert (deviations.min(), deviations.max()) == (pytest.approx(least, abs=0.4), pytest.approx(most, abs=0.6))
    assert noisy.mean() == pytest.approx(128, abs=0.1)


@pytest.mark.parametrize("style", ["superpoint", "silk_hpatches"])
def test_speckle_is_rare_and_on_both_sides(style):
    speckled = _results(augment.speckle, np.full((60, 80, 3), 128, np.uint8), **_settings(style, "speckle"))
    black, white = ((speckled == level).all(-1).mean((1, 2)) for level in (0, 255))
    assert black.mean() == pytest.approx(0.00175, rel=0.15)
    assert white.mean() == pytest.approx(0.00175, rel=0.15)
    assert black.max() < 2 * 0.0035
    assert (speckled.min(-1) == speckled.max(-1)).all(), "a pixel is struck whole"


def test_shade_is_soft_and_within_its_range():
    settings = _settings("superpoint", "shade")
    assert settings["kernel"] == (50, 100)
    shaded = _results(augment.shade, np.full((120, 160), 100, np.uint8), **settings)
    assert shaded.min() >= 100 * (1 - 0.8) - 1
    assert shaded.max() <= 100 * (1 + 0.5) + 1
    assert shaded.min() < 50
    assert shaded.max() > 130
    steps = np.abs(np.diff(shaded, axis=2)).max()
    assert steps < 8, "a blur of 50 pixels leaves no edge"
    assert np.ptp(shaded, axis=(1, 2)).mean() > 10, "and yet something is to be seen"


def test_box_blur_is_centred_and_odd():
    blurred = _results(augment.box_blur, _dot(), **_settings("silk", "box_blur")) > 0
    sides = blurred.any(1).sum(1)
    assert set(sides) == {3, 5, 7, 9}
    assert (blurred == blurred[:, ::-1, ::-1]).all()


@pytest.mark.parametrize(("style", "longest"), [("superpoint", 7), ("silk", 25), ("silk_hpatches", 3)])
def test_streaks_are_centred_and_no_longer_than_said(style, longest):
    streaked = _results(augment.streak, _dot(), **_settings(style, "streak"))
    y, x = np.indices(streaked.shape[1:]) - 20
    mass = streaked.sum((1, 2))
    assert np.abs((streaked * x).sum((1, 2)) / mass).max() < 1e-6
    assert np.abs((streaked * y).sum((1, 2)) / mass).max() < 1e-6
    np.testing.assert_allclose(mass, 255, atol=13, err_msg="light is neither made nor lost but by rounding")
    reach = [2 * np.hypot(x, y)[kernel > 0].max() + 1 for kernel in streaked]
    assert longest - 1.5 < max(reach) < longest + 1.5


def _quads(homographies) -> np.ndarray:
    return np.array([homographies.sample(np.random.default_rng(seed)) for seed in range(1000)])


@pytest.mark.parametrize("homographies", [
    SuperPointHomographies(), SuperPointHomographies(patch=0.8), SilkHomographies(), SilkHomographies(0.6, 0.6),
])  # fmt: skip
def test_views_are_neither_mirrored_nor_folded(homographies):
    edges = np.roll(quads := _quads(homographies), -1, 1) - quads
    after = np.roll(edges, -1, 1)
    turns = edges[..., 0] * after[..., 1] - edges[..., 1] * after[..., 0]
    assert turns.min() > 0.2, "convex and clockwise, as the corners of an image are"


def test_superpoint_patch_alone_is_the_view_moved_within_its_room():
    """No tilt, scale or turn: the view keeps its size and moves until the patch touches the rim."""
    moved = _quads(SuperPointHomographies(patch=0.85, perspective=0, scale=0, rotation=0))
    shifts = moved - [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    np.testing.assert_allclose(shifts, shifts[:, :1].repeat(4, 1), atol=1e-5)
    assert (shifts.min(), shifts.max()) == (pytest.approx(-0.15, abs=2e-3), pytest.approx(0.15, abs=2e-3))


def test_superpoint_scale_turn_and_tilt_ranges():
    def sides(**settings):
        quads = _quads(SuperPointHomographies(**{"perspective": 0, "scale": 0, "rotation": 0, **settings}))
        return quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 3]

    top, _ = sides(scale=0.2)
    assert (top[:, 0].min() / 2, top[:, 0].max() / 2) == (pytest.approx(0.8, abs=0.02), pytest.approx(1.2, abs=0.02))
    assert top[:, 0].std() / 2 == pytest.approx(0.1 * 0.88, abs=0.01), "a normal of half the amplitude, cut at it"
    top, _ = sides(rotation=np.pi / 2)
    angles = np.arctan2(top[:, 1], top[:, 0])
    assert (angles.min(), angles.max()) == (pytest.approx(-np.pi / 2, abs=0.02), pytest.approx(np.pi / 2, abs=0.02))
    left_right = _quads(SuperPointHomographies(patch=1, perspective=0.2, scale=0, rotation=0))
    heights = np.stack([left_right[:, 3, 1] - left_right[:, 0, 1], left_right[:, 2, 1] - left_right[:, 1, 1]])
    np.testing.assert_allclose(heights.sum(0), 4, atol=1e-5, err_msg="one side grows by what the other loses")
    assert np.abs(heights - 2).max() == pytest.approx(0.8, abs=0.03)


def test_silk_ranges_one_at_a_time():
    flat = _quads(SilkHomographies(in_plane=0, out_of_plane=0))
    factors = flat / [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    assert (factors.min(), factors.max()) == (pytest.approx(0.6, abs=2e-3), pytest.approx(0.9, abs=2e-3))
    np.testing.assert_allclose(factors, factors[:, :1, :1].repeat(4, 1).repeat(2, 2), atol=1e-9)
    top = np.diff(_quads(SilkHomographies(1, 1, out_of_plane=0))[:, :2], axis=1)[:, 0]
    angles = np.arctan2(top[:, 1], top[:, 0])
    assert (angles.min(), angles.max()) == (pytest.approx(-0.39, abs=0.01), pytest.approx(0.39, abs=0.01))


def test_silk_tilts_as_a_camera_sees_a_plane():
    """A plane turned about an axis through its middle: distances along that axis's direction shrink by the depth."""
    class Fixed:
        def uniform(self, low, high):
            return {(0.6, 0.9): 1.0, (-0.78, 0.78): 0.5}.get((low, high), 0.0)

    corners = SilkHomographies().sample(Fixed())
    depth = 2 + np.sin(0.5) * np.array([-1, -1, 1, 1])
    expected = np.array([[-1, -np.cos(0.5)], [1, -np.cos(0.5)], [1, np.cos(0.5)], [-1, np.cos(0.5)]])
    np.testing.assert_allclose(corners, expected * (2 / depth)[:, None], atol=1e-12)


@pytest.mark.parametrize(("photo_size", "zoom"), [((480, 640), 1.0), ((960, 1280), 2.0), ((120, 200), 120 / 164)])
def test_silk_crops_photographs_as_large_as_cocos(photo_size, zoom):
    config = PairConfig(geometry="silk", height=164, width=164)
    for seed in range(50):
        first, second = GEOMETRIES["silk"](photo_size, config, np.random.default_rng(seed))
        corners = warp_points(first, view_corners(164, 164))
        np.testing.assert_allclose(np.diff(corners[:2], axis=0)[0], [164 * zoom, 0], atol=1e-3)
        assert corners.min() > -0.5 - 1e-3
        assert (corners.max(0) < np.array(photo_size[::-1]) - 0.5 + 1e-3).all()
        middle = np.full((1, 2), 81.5)
        np.testing.assert_allclose(warp_points(first, middle), _crossing(warp_points(second, view_corners(164, 164))),
                                   atol=1e-2, err_msg="no shift: both look at the same middle")


def _crossing(corners: np.ndarray) -> np.ndarray:
    """1×2: where the diagonals of a quadrilateral cross, the image of the view's middle."""
    first, second = corners[2] - corners[0], corners[3] - corners[1]
    along = np.linalg.solve(np.column_stack([first, -second]), corners[1] - corners[0])[0]
    return (corners[0] + along * first)[None]


def test_superpoint_image_is_the_middle_of_the_photograph():
    config = PairConfig(geometry="superpoint", height=240, width=320)
    first, second = GEOMETRIES["superpoint"]((600, 600), config, np.random.default_rng(0))
    np.testing.assert_allclose(warp_points(first, view_corners(240, 320)),
                               [[-0.5, 74.5], [599.5, 74.5], [599.5, 524.5], [-0.5, 524.5]], atol=1e-3)
    expected = SuperPointHomographies().sample(np.random.default_rng(0)) * [300, 225] + 299.5
    np.testing.assert_allclose(warp_points(second, view_corners(240, 320)), expected, atol=1e-2)
