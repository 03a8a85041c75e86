"""CameraModel: exact projections, distortion there and back, and calibrations that cannot be used."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kp_frontend.camera import CameraModel, baseline_from_camera_info
from kp_frontend.errors import InputError

MATRIX = np.array([[400.0, 0, 319.5], [0, 410, 239.5], [0, 0, 1]])
LENSES = {
    "plumb_bob": [-0.28, 0.07, 1e-3, -5e-4, 0.0],
    "rational_polynomial": [0.52, -2.7, 5e-4, -1e-4, 1.56, 0.4, -2.5, 1.48],
    "equidistant": [0.02, -0.01, 0.004, -0.001],
}


def info(**changes) -> SimpleNamespace:
    """A CameraInfo as rclpy gives it."""
    values = {
        "width": 640, "height": 480, "distortion_model": "plumb_bob", "d": LENSES["plumb_bob"],
        "k": MATRIX.ravel(), "p": [380.0, 0, 310, -38, 0, 380, 230, 0, 0, 0, 1, 0],
        "binning_x": 0, "binning_y": 0, "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**{**values, **changes})


def test_pinhole_by_hand():
    camera = CameraModel(640, 480, MATRIX)
    np.testing.assert_allclose(camera.project([[0, 0, 3], [1, -0.5, 2]]), [[319.5, 239.5], [519.5, 137]])
    rays = camera.bearings([[319.5, 239.5], [519.5, 137]])
    assert rays.dtype == np.float32
    np.testing.assert_allclose(rays, [[0, 0, 1], [0.5, -0.25, 1]], atol=1e-6)
    assert camera.bearings(np.zeros((0, 2))).shape == (0, 3)


def test_distortion_by_hand():
    radial = CameraModel(640, 480, MATRIX, [0.1, 0, 0, 0, 0])
    np.testing.assert_allclose(radial.project([[0.5, 0, 1]]), [[319.5 + 400 * 0.5 * (1 + 0.1 * 0.25), 239.5]])
    fisheye = CameraModel(640, 480, MATRIX, [], "equidistant")
    np.testing.assert_allclose(fisheye.project([[np.tan(0.7), 0, 1]]), [[319.5 + 400 * 0.7, 239.5]])
    np.testing.assert_allclose(fisheye.bearings([[319.5 + 400 * 0.7, 239.5]]), [[np.tan(0.7), 0, 1]], rtol=1e-5)


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize("count", [0, 1, 500])
def test_projecting_the_bearings_gives_the_pixels_back(model, count):
    camera = CameraModel(640, 480, MATRIX, LENSES[model], model)
    pixels = np.random.default_rng(0).uniform([0, 0], [639, 479], (count, 2))
    np.testing.assert_allclose(camera.project(camera.bearings(pixels)), pixels, atol=2e-3)


def test_what_has_no_image_or_no_ray_is_nan():
    camera = CameraModel(640, 480, MATRIX)
    assert np.isnan(camera.project([[0, 0, -1], [1, 1, 0]])).all()
    wide = CameraModel(2000, 480, MATRIX + [[0, 0, 680], [0, 0, 0], [0, 0, 0]], LENSES["equidistant"], "equidistant")
    rays = wide.bearings([[999.5 + 400 * 1.0, 239.5], [999.5 + 400 * 2.4, 239.5]])
    assert np.isfinite(rays[0]).all()
    assert np.isnan(rays[1]).all()


def test_scaling_keeps_the_rays_of_the_image_corners():
    camera = CameraModel(640, 480, MATRIX, LENSES["plumb_bob"])
    half = camera.scaled(320, 120)
    assert (half.width, half.height) == (320, 120)
    corners = np.array([[-0.5, -0.5], [639.5, 479.5]])
    smaller = np.array([[-0.5, -0.5], [319.5, 119.5]])
    np.testing.assert_allclose(half.bearings(smaller), camera.bearings(corners), atol=1e-5)


def test_camera_info_of_ros_2_and_ros_1():
    camera = CameraModel.from_camera_info(info())
    np.testing.assert_array_equal(camera.matrix, MATRIX)
    np.testing.assert_array_equal(camera.distortion, LENSES["plumb_bob"])
    upper = SimpleNamespace(**{(k.upper() if k in "dkp" else k): v for k, v in vars(info()).items()})
    np.testing.assert_array_equal(CameraModel.from_camera_info(upper).matrix, MATRIX)
    assert not camera.matrix.flags.writeable


def test_rectified_images_use_p_without_distortion():
    camera = CameraModel.from_camera_info(info(), rectified=True)
    np.testing.assert_array_equal(camera.matrix, [[380, 0, 310], [0, 380, 230], [0, 0, 1]])
    assert camera.undistorted


def test_region_of_interest_and_binning_are_the_images():
    region = SimpleNamespace(x_offset=100, y_offset=40, width=400, height=300)
    camera = CameraModel.from_camera_info(info(d=[], roi=region, binning_x=2, binning_y=2))
    assert (camera.width, camera.height) == (200, 150)
    pixel_in_full = np.array([[100 + 2 * 30 + 0.5, 40 + 2 * 20 + 0.5]])  # centre of the 2×2 block
    expected = CameraModel(640, 480, MATRIX).bearings(pixel_in_full)
    np.testing.assert_allclose(camera.bearings([[30, 20]]), expected, atol=1e-6)


def test_simulators_leave_the_model_empty():
    assert CameraModel.from_camera_info(info(distortion_model="", d=[0.0] * 5)).undistorted
    assert CameraModel.from_camera_info(info(d=[0.0] * 5)).undistorted
    assert not CameraModel.from_camera_info(info(distortion_model="equidistant", d=[0.0] * 4)).undistorted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": [0.0] * 9}, r"K = 0 \(uncalibrated\); publish a calibration or set calibration_file"),
        ({"k": [np.nan] * 9}, "K is not 9 finite numbers"),
        ({"k": [-400.0, 0, 320, 0, 400, 240, 0, 0, 1]}, "fx, fy > 0"),
        ({"d": [0.1, 0.2, 0.3]}, "takes 0 or 4 or 5 finite coefficients"),
        ({"d": [np.nan] * 5}, "finite coefficients"),
        ({"distortion_model": "mei"}, "'mei' is unknown; choose one of: plumb_bob, rational_polynomial, equidistant"),
        ({"distortion_model": ""}, "'' is unknown"),
        ({"width": 0}, "camera size is 0×480"),
    ],
)
def test_unusable_camera_info_says_why(changes, message):
    with pytest.raises(InputError, match=message):
        CameraModel.from_camera_info(info(**changes))


def test_rectified_without_p_says_so():
    with pytest.raises(InputError, match="P = 0"):
        CameraModel.from_camera_info(info(p=[0.0] * 12), rectified=True)


def test_baseline():
    assert baseline_from_camera_info(info()) == pytest.approx(0.1)
    for shift in (0.0, 38.0, np.nan):
        with pytest.raises(InputError):
            baseline_from_camera_info(info(p=[380.0, 0, 310, shift, 0, 380, 230, 0, 0, 0, 1, 0]))


ROS_YAML = """
image_width: 640
image_height: 480
camera_name: left
camera_matrix: {rows: 3, cols: 3, data: [400, 0, 319.5, 0, 410, 239.5, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.28, 0.07, 0.001, -0.0005, 0]}
projection_matrix: {rows: 3, cols: 4, data: [380, 0, 310, -38, 0, 380, 230, 0, 0, 0, 1, 0]}
"""
FLAT_YAML = "fx: 400\nfy: 410\ncx: 319.5\ncy: 239.5\nwidth: 640\nheight: 480\ndepth_type: z\n"
EUROC_YAML = """
resolution: [640, 480]
camera_model: pinhole
intrinsics: [400, 410, 319.5, 239.5]
distortion_model: radial-tangential
distortion_coefficients: [-0.28, 0.07, 0.001, -0.0005]
"""


@pytest.mark.parametrize(("text", "coefficients"), [(ROS_YAML, 5), (FLAT_YAML, 0), (EUROC_YAML, 4)])
def test_calibration_files(tmp_path, text, coefficients):
    (tmp_path / "camera.yaml").write_text(text)
    camera = CameraModel.from_yaml(tmp_path / "camera.yaml")
    assert (camera.width, camera.height, camera.model) == (640, 480, "plumb_bob")
    np.testing.assert_array_equal(camera.matrix, MATRIX)
    np.testing.assert_array_equal(camera.distortion, LENSES["plumb_bob"][:coefficients])


def test_calibration_file_of_a_rectified_camera(tmp_path):
    (tmp_path / "camera.yaml").write_text(ROS_YAML)
    assert CameraModel.from_yaml(tmp_path / "camera.yaml", rectified=True).matrix[0, 0] == 380


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fx: 400\nfy: 400\n", "lacks 'cx'"),
        ("[1, 2]", "holds no keys"),
        ("a: [", "not readable YAML"),
        ("focal: 3", "expected one of the keys camera_matrix, fx, intrinsics"),
        (FLAT_YAML.replace("400", "wide"), "could not convert"),
        (FLAT_YAML.replace("400", "0").replace("410", "0"), "fx, fy > 0"),
    ],
)
def test_unusable_calibration_files_say_why(tmp_path, text, message):
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        CameraModel.from_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_missing_calibration_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml does not exist"):
        CameraModel.from_yaml("nowhere.yaml")
