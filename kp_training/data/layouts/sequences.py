"""Recorded sequences: ours, and those that ``kp_frontend make_bag`` reads too (TUM RGB-D, KITTI, EuRoC, Tsukuba)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_folder import list_scene_folder
from kp_frontend.replay.scenes import SceneOptions, open_scene
from kp_training.data.layouts.frames import FrameFiles, SceneKind, make_scene
from kp_training.data.layouts.poses import poses_at, poses_of_rows
from kp_training.data.posed import PosedScene


def read_ours(source: Path, name: str) -> PosedScene:
    """``rgb/``, ``depth/``, ``poses.txt``, ``intrinsics.yaml`` and, where images differ, ``intrinsics.txt``."""
    folder = list_scene_folder(source)
    cameras = [folder.camera] * len(folder.frames)
    if folder.focals is not None:
        cameras = [_with_focals(folder.camera, row) for row in folder.focals]
    found = [
        FrameFiles(frame.image, camera, pose, frame.depth, frame.stamp)
        for frame, camera, pose in zip(folder.frames, cameras, poses_of_rows(folder.rows))
    ]
    kind = SceneKind(folder.metric, folder.ordered, folder.depth_factor, ray=folder.ray)
    return make_scene(name, source, found, kind)


def _with_focals(camera: CameraModel, row: np.ndarray) -> CameraModel:
    fx, fy, cx, cy = row
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return CameraModel(camera.width, camera.height, matrix, camera.distortion, camera.model)


def read_sequence(layout: str, source: Path, name: str) -> PosedScene:
    """A folder of one of the layouts of ``kp_frontend.replay.scenes``; poses are taken at the images' stamps."""
    mono = layout == "euroc"  # else the pair would be rectified: one camera is all we need
    scene = open_scene(source, layout, SceneOptions(mono=mono))
    if scene.ground_truth is None:
        raise InputError(f"{source} ({layout}) has no ground truth; a posed scene needs it")
    if not scene.ground_truth.oriented:
        raise InputError(f"{source} ({layout}): the ground truth has positions only; a posed scene needs rotations")
    poses = poses_at(scene.ground_truth, np.array([frame.stamp for frame in scene.frames]))
    found = [FrameFiles(frame.image, scene.camera, pose, frame.depth, frame.stamp)
             for frame, pose in zip(scene.frames, poses)]
    return make_scene(name, source, found, SceneKind(True, True, float(np.max(scene.depth_factor))))
