"""Recordings of depth cameras with a pose file a frame: 7-Scenes and ScanNet."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import IMAGE_SUFFIXES, files_in, natural, need
from kp_training.data.layouts.depth_files import read_depth
from kp_training.data.layouts.frames import FrameFiles, SceneKind, make_scene
from kp_training.data.layouts.poses import read_matrix
from kp_training.data.posed import PosedScene

SEVEN_SCENES = CameraModel(640, 480, np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]]))
NO_DEPTH = 65535  # of 7-Scenes

log = logging.getLogger(__name__)


def read_seven_scenes(source: Path, name: str) -> PosedScene:
    """One ``seq-NN``: ``frame-NNNNNN.color.png``, ``.depth.png`` (millimetres) and ``.pose.txt``.

    The published camera (585, 320, 240) is that of depth; ``intrinsics.yaml`` in the folder replaces it.
    """
    calibration = source / "intrinsics.yaml"
    if calibration.is_file():
        camera = CameraModel.from_yaml(calibration)
    else:
        camera = SEVEN_SCENES
        _warn_of_registration()
    colours = [path for path in files_in(source) if path.name.endswith((".color.png", ".color.jpg"))]
    found = []
    for colour in colours:
        stem = source / colour.name.partition(".color.")[0]
        pose = Path(f"{stem}.pose.txt")
        found.append(FrameFiles(colour, camera, read_matrix(pose) if pose.is_file() else None,
                                Path(f"{stem}.depth.png")))
    return make_scene(name, source, found, SceneKind(metric=True, ordered=True, void=NO_DEPTH))


@functools.cache
def _warn_of_registration() -> None:
    log.warning("7-Scenes' depth is not registered to its colour images (585 against 525 pixels focal length, 23 mm "
                "apart): points taken from colour miss by about 5 pixels; warp depth into the colour camera and put "
                "that camera's intrinsics.yaml into the folder")


def read_scannet(source: Path, name: str) -> PosedScene:
    """Exported ScanNet: ``color/``, ``depth/`` (mm), ``pose/`` and ``intrinsic/``; files are named by number.

    Colour and depth are aligned as published, so colour is resized to depth's size and has depth's intrinsics.
    """
    colours = sorted(files_in(need(source / "color"), IMAGE_SUFFIXES), key=lambda path: natural(path.name))
    poses = need(source / "pose")
    matrix = read_matrix(need(source / "intrinsic" / "intrinsic_depth.txt"))[:3, :3]
    depths = {path.stem: path for path in files_in(need(source / "depth"), (".png",))}
    camera = None
    for path in depths.values():
        try:
            height, width = read_depth(path, 1.0).shape
        except InputError:
            continue  # counted when it is this frame's turn
        camera = CameraModel(width, height, matrix)
        break
    if camera is None:
        raise InputError(f"{source / 'depth'}: not one of {len(depths)} depth maps can be read")
    found = []
    for colour in colours:
        pose = poses / f"{colour.stem}.txt"
        found.append(FrameFiles(colour, camera, read_matrix(pose) if pose.is_file() else None,
                                depths.get(colour.stem)))
    return make_scene(name, source, found, SceneKind(metric=True, ordered=True, fitted=True))
