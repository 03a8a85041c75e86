"""The camera: pixels ↔ bearings, from a camera_info message or a calibration file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from kp_frontend.errors import InputError

# Lens models by their ROS name, with the numbers of coefficients that OpenCV takes for each.
COEFFICIENTS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8, 12, 14), "equidistant": (0, 4)}
_ALIASES = {"radtan": "plumb_bob", "radial-tangential": "plumb_bob", "fisheye": "equidistant"}
_ADVICE = "publish a calibration or set calibration_file"
_REACHED = 0.1  # pixels between a pixel and the projection of its bearing
_ITERATIONS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-9)


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Pinhole camera with lens distortion.

    width, height: of the image, pixels.  matrix: 3×3 float64, K; pixel centres are at integers, no skew.
    distortion: float64, as ROS and OpenCV order it; empty = none.
    model: ``plumb_bob`` (k1 k2 p1 p2 k3), ``rational_polynomial`` (k1 k2 p1 p2 k3 … k6) or
        ``equidistant`` (k1 … k4, Kannala-Brandt fisheye).
    Raises InputError for a calibration that cannot be one.
    """

    width: int
    height: int
    matrix: np.ndarray
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(0))
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        distortion = np.array(self.distortion, np.float64).ravel()
        model = _ALIASES.get(self.model, self.model)
        if self.model == "" and not distortion.any():  # what simulators publish
            model, distortion = "plumb_bob", distortion[:0]
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise InputError(f"K is not 3×3 finite numbers: {matrix.tolist()}; {_ADVICE}")
        if not matrix.any():
            raise InputError(f"K = 0 (uncalibrated); {_ADVICE}")
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or abs(matrix[0, 1]) > 1e-6 or list(matrix[2]) != [0, 0, 1]:
            raise InputError(f"K is not [fx 0 cx; 0 fy cy; 0 0 1] with fx, fy > 0: {matrix.tolist()}; {_ADVICE}")
        if self.width < 1 or self.height < 1:
            raise InputError(f"camera size is {self.width}×{self.height}, expected the image's; {_ADVICE}")
        if model not in COEFFICIENTS:
            raise InputError(f"distortion model {self.model!r} is unknown; choose one of: {', '.join(COEFFICIENTS)}")
        if len(distortion) not in COEFFICIENTS[model] or not np.isfinite(distortion).all():
            raise InputError(
                f"distortion model {model!r} takes {' or '.join(map(str, COEFFICIENTS[model]))} finite coefficients, "
                f"got {distortion.tolist()}; {_ADVICE}"
            )
        if not distortion.any() and model != "equidistant":  # a fisheye without coefficients still is one
            distortion = distortion[:0]
        elif model == "equidistant" and not len(distortion):
            distortion = np.zeros(4)
        for array in (matrix, distortion):
            array.setflags(write=False)
        for name, value in (("matrix", matrix), ("distortion", distortion), ("model", model)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_camera_info(cls, info: Any, rectified: bool = False) -> CameraModel:
        """Camera of a sensor_msgs/CameraInfo (rclpy's, or rosbags' of ROS 1 or 2).

        rectified: the image was rectified (``image_rect``), so P holds and no distortion is left.
        Region of interest and binning are applied, as the image of the same topic shows them.
        Raises InputError for an uncalibrated camera; the caller adds the topic.
        """
        if rectified:
            camera = cls(info.width, info.height, _numbers(info, "p", 12).reshape(3, 4)[:, :3])
        else:
            lens = np.asarray(_entry(info, "d"), np.float64)
            camera = cls(info.width, info.height, _numbers(info, "k", 9).reshape(3, 3), lens, info.distortion_model)
        return camera._as_read_out(info)

    @classmethod
    def from_yaml(cls, path: str | Path, rectified: bool = False) -> CameraModel:
        """Camera of a calibration file.

        Read are ROS' camera_calibration YAML, our flat ``intrinsics.yaml`` (fx fy cx cy width height, if need be
        distortion_model and distortion_coefficients), and EuRoC's ``sensor.yaml``.
        Raises InputError for anything else.
        """
        values = _load_yaml(Path(path))
        try:
            for mark, read in _LAYOUTS.items():
                if mark in values:
                    return read(values, rectified)
        except (KeyError, TypeError, ValueError) as error:
            wrong = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"calibration {path}: {wrong}") from error
        raise InputError(f"calibration {path}: expected one of the keys {', '.join(_LAYOUTS)}, got {sorted(values)}")

    @property
    def undistorted(self) -> bool:
        """Whether a straight line is straight in the image."""
        return self.model != "equidistant" and not len(self.distortion)

    def bearings(self, pixels: np.ndarray) -> np.ndarray:
        """Undistorted viewing rays of N×2 pixels: N×3 float32 with z = 1, in the camera frame.

        nan where the lens model has no such ray: outside its valid field, or 90° and more off the axis.
        """
        pixels = np.asarray(pixels, np.float64).reshape(-1, 2)
        rays = np.ones((len(pixels), 3), np.float32)
        if self.undistorted:
            rays[:, :2] = (pixels - self.matrix[:2, 2]) / self.matrix[[0, 1], [0, 1]]
        elif len(pixels):
            rays[:, :2] = self._undistort(pixels.reshape(-1, 1, 2)).reshape(-1, 2)
            missed = np.abs(self.project(rays) - pixels).max(axis=1)
            rays[~(missed < _REACHED)] = np.nan  # OpenCV gives a ray even where it found none
        return rays

    def _undistort(self, pixels: np.ndarray) -> np.ndarray:
        if self.model == "equidistant":
            return cv2.fisheye.undistortPoints(pixels, self.matrix, self.distortion.reshape(-1, 1))
        lens = self.distortion.reshape(-1, 1)
        if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4; 5 takes the criteria itself
            return cv2.undistortPointsIter(pixels, self.matrix, lens, None, None, _ITERATIONS)
        return cv2.undistortPoints(pixels, self.matrix, lens, criteria=_ITERATIONS)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels, N×2 float64, of N×3 points in the camera frame; nan where a point is not in front."""
        points = np.asarray(points, np.float64).reshape(-1, 3)
        ahead = points[:, 2] > 1e-9
        pixels = np.full((len(points), 2), np.nan)
        if self.undistorted:
            plane = points[ahead, :2] / points[ahead, 2:]
            pixels[ahead] = plane * self.matrix[[0, 1], [0, 1]] + self.matrix[:2, 2]
        elif ahead.any():
            project = cv2.fisheye.projectPoints if self.model == "equidistant" else cv2.projectPoints
            still, lens = np.zeros((3, 1)), self.distortion.reshape(-1, 1)
            pixels[ahead] = project(points[ahead].reshape(-1, 1, 3), still, still, self.matrix, lens)[0].reshape(-1, 2)
        return pixels

    def scaled(self, width: int, height: int) -> CameraModel:
        """The camera of the same image resized to `width` × `height`."""
        factor = np.array([width / self.width, height / self.height])
        matrix = self.matrix.copy()
        matrix[[0, 1], [0, 1]] *= factor
        matrix[:2, 2] = (matrix[:2, 2] + 0.5) * factor - 0.5  # pixel centres are at integers
        return CameraModel(width, height, matrix, self.distortion, self.model)

    def _as_read_out(self, info: Any) -> CameraModel:
        """The camera of the part of the sensor that was read out (ROS: first region of interest, then binning)."""
        camera, region = self, getattr(info, "roi", None)
        if region is not None and region.width and region.height:
            matrix = self.matrix - np.array([[0, 0, region.x_offset], [0, 0, region.y_offset], [0, 0, 0]])
            camera = CameraModel(region.width, region.height, matrix, self.distortion, self.model)
        across, down = max(getattr(info, "binning_x", 0), 1), max(getattr(info, "binning_y", 0), 1)
        if across == down == 1:
            return camera
        return camera.scaled(camera.width // across, camera.height // down)


def baseline_from_camera_info(right: Any) -> float:
    """Metres from the left to the right camera of a rectified pair, from the right camera's camera_info.

    Its P[0, 3] is -fx·baseline; InputError where that gives no baseline.
    """
    projection = _numbers(right, "p", 12).reshape(3, 4)
    focal, shift = projection[0, 0], projection[0, 3]
    if not (np.isfinite([focal, shift]).all() and focal > 0 and shift < 0):
        raise InputError(
            f"the right camera has P[0,0] = {focal:g} and P[0,3] = {shift:g}, expected fx > 0 and -fx·baseline < 0; "
            "publish the stereo calibration, and check that left and right are not exchanged"
        )
    return float(-shift / focal)


def _entry(info: Any, name: str) -> Any:
    """Field of a CameraInfo: lower case in ROS 2, upper case in ROS 1."""
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def _numbers(info: Any, name: str, count: int) -> np.ndarray:
    values = np.asarray(_entry(info, name), np.float64).ravel()
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"{name.upper()} is not {count} finite numbers: {values.tolist()}; {_ADVICE}")
    if not values.any():
        raise InputError(f"{name.upper()} = 0 (uncalibrated); {_ADVICE}")
    return values


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"calibration {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"calibration {path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"calibration {path} holds no keys; expected one of: {', '.join(_LAYOUTS)}")
    return values


def _from_ros(values: dict[str, Any], rectified: bool) -> CameraModel:
    width, height = int(values["image_width"]), int(values["image_height"])
    if rectified:
        return CameraModel(width, height, np.reshape(values["projection_matrix"]["data"], (3, 4))[:, :3])
    lens = values["distortion_coefficients"]["data"]
    return CameraModel(
        width, height, np.reshape(values["camera_matrix"]["data"], (3, 3)), lens, values["distortion_model"]
    )


def _from_flat(values: dict[str, Any], rectified: bool) -> CameraModel:
    lens = [] if rectified else values.get("distortion_coefficients", [])
    intrinsics = [values[key] for key in ("fx", "fy", "cx", "cy")]
    return _pinhole(values, intrinsics, (values["width"], values["height"]), lens)


def _from_euroc(values: dict[str, Any], rectified: bool) -> CameraModel:
    lens = [] if rectified else values.get("distortion_coefficients", [])
    return _pinhole(values, values["intrinsics"], values["resolution"], lens)


def _pinhole(values: dict[str, Any], intrinsics: Any, size: Any, lens: Any) -> CameraModel:
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    width, height = (int(value) for value in size)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return CameraModel(width, height, matrix, lens, values.get("distortion_model", "plumb_bob"))


# Calibration layouts by a key that only they have.
_LAYOUTS = {"camera_matrix": _from_ros, "fx": _from_flat, "intrinsics": _from_euroc}
