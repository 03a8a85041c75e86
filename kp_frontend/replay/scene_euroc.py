"""EuRoC's ASL folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import yaml

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import Rectification, Scene, SceneFrame, SceneOptions, need
from kp_frontend.replay.trajectory import as_integers, read_euroc, read_rows


def read_euroc_asl(source: Path, options: SceneOptions) -> Scene:
    """EuRoC's ASL folders; a pair is rectified, and the pose of the body becomes that of the (rectified) camera."""
    root = source / "mav0" if (source / "mav0").is_dir() else source
    stamps, images = _euroc_images(root / "cam0")
    camera, body_from_camera = _euroc_sensor(root / "cam0")
    frames = {stamp: SceneFrame(stamp, image) for stamp, image in zip(stamps, images)}
    baseline = rectification = None
    if (root / "cam1").is_dir() and not options.mono:
        for stamp, image in zip(*_euroc_images(root / "cam1")):
            if stamp in frames:
                frames[stamp] = replace(frames[stamp], right=image)
        right, body_from_right = _euroc_sensor(root / "cam1")
        right_from_left = np.linalg.inv(body_from_right) @ body_from_camera
        camera, rotation, baseline, rectification = _rectify(camera, right, right_from_left)
        body_from_camera = body_from_camera.copy()
        body_from_camera[:3, :3] = body_from_camera[:3, :3] @ rotation.T
    truths = [root / name / "data.csv" for name in ("state_groundtruth_estimate0", "mocap0")]
    truth = next((read_euroc(path) for path in truths if path.is_file()), None)
    return Scene(
        "euroc", options.camera or camera, tuple(frames[s] for s in sorted(frames)),
        truth.moved_by(body_from_camera) if truth is not None else None, baseline, rectification=rectification,
    )


def _euroc_images(folder: Path) -> tuple[list[int], list[Path]]:
    path = need(folder / "data.csv")
    rows = read_rows(path, 2, ",")
    return as_integers(rows[:, 0], path).tolist(), [folder / "data" / name for name in rows[:, 1]]


def _euroc_sensor(folder: Path) -> tuple[CameraModel, np.ndarray]:
    """Camera and body_from_camera (4×4) of ``sensor.yaml``."""
    path = need(folder / "sensor.yaml")
    camera = CameraModel.from_yaml(path)
    try:
        pose = np.asarray(yaml.safe_load(path.read_text())["T_BS"]["data"], float).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} has no T_BS of 4×4 numbers: {error!r}") from None
    return camera, pose


def _rectify(left: CameraModel, right: CameraModel, right_from_left: np.ndarray):
    """Rectified camera, rectified_from_left (3×3), baseline in metres, and the maps."""
    if "equidistant" in (left.model, right.model):
        raise InputError("a pair of equidistant lenses is not rectified here; give --mono for the left camera alone")
    size = (left.width, left.height)
    lenses = [np.resize(camera.distortion, (max(len(camera.distortion), 4), 1)) for camera in (left, right)]
    rotations = cv2.stereoRectify(
        left.matrix, lenses[0], right.matrix, lenses[1], size,
        right_from_left[:3, :3], right_from_left[:3, 3:4], flags=cv2.CALIB_ZERO_DISPARITY, alpha=0,
    )
    left_rotation, left_projection, right_projection = rotations[0], rotations[2], rotations[3]
    maps = [
        cv2.initUndistortRectifyMap(camera.matrix, lens, rotation, projection[:, :3], size, cv2.CV_16SC2)
        for camera, lens, rotation, projection in zip((left, right), lenses, rotations[:2], rotations[2:4])
    ]
    camera = CameraModel(*size, left_projection[:, :3].copy())
    return camera, left_rotation, float(-right_projection[0, 3] / right_projection[0, 0]), Rectification(*maps)
