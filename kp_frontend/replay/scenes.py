"""Data set folders → one kind of sequence: calibrated images with stamps, depth or a second image, ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.quaternions import poses_from_quaternions
from kp_frontend.replay.association import nearest
from kp_frontend.replay.scene_euroc import read_euroc_asl
from kp_frontend.replay.scene_files import Scene, SceneFrame, SceneOptions, files_in, need, pinhole
from kp_frontend.replay.scene_folder import read_scene_folder
from kp_frontend.replay.trajectory import (
    Trajectory,
    as_floats,
    as_nanoseconds,
    read_kitti,
    read_rows,
    read_tum,
)

# Calibrations that the TUM RGB-D benchmark publishes for the colour cameras: fx fy cx cy, k1 k2 p1 p2 k3.
TUM_CAMERAS = {
    1: ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    2: ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    3: ((535.4, 539.2, 320.1, 247.6), (0.0, 0.0, 0.0, 0.0, 0.0)),
}


def read_tum_rgbd(source: Path, options: SceneOptions) -> Scene:
    """TUM RGB-D: ``rgb.txt``, ``depth.txt`` (5000 units a metre, at most 20 ms off), ``groundtruth.txt``."""
    lists = {name: read_rows(need(source / f"{name}.txt"), 2) for name in ("rgb", "depth")}
    stamps = {name: as_nanoseconds(rows[:, 0], source / f"{name}.txt") for name, rows in lists.items()}
    order = np.argsort(stamps["depth"])
    which = nearest(stamps["depth"][order], stamps["rgb"], 20_000_000)
    frames = tuple(
        SceneFrame(stamp, source / row[1], source / lists["depth"][order[k], 1] if k >= 0 else None)
        for stamp, row, k in zip(stamps["rgb"].tolist(), lists["rgb"], which)
    )
    truth = source / "groundtruth.txt"
    return Scene(
        "tum_rgbd", options.camera or _tum_camera(source), frames,
        read_tum(truth) if truth.is_file() else None, depth_factor=1 / 5000,
    )


def _tum_camera(source: Path) -> CameraModel:
    if (source / "intrinsics.yaml").is_file():
        return CameraModel.from_yaml(source / "intrinsics.yaml")
    name = source.resolve().name
    for number, ((fx, fy, cx, cy), distortion) in TUM_CAMERAS.items():
        if f"freiburg{number}" in name or f"fr{number}" in name:
            matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
            return CameraModel(640, 480, matrix, np.array(distortion))
    raise InputError(f"no camera is known for {name!r} (TUM names hold freiburg1, 2 or 3); put intrinsics.yaml "
                     "into the folder, or give --intrinsics FILE")


def read_kitti_odometry(source: Path, options: SceneOptions) -> Scene:
    """KITTI odometry, one ``sequences/NN``: ``image_0`` and ``image_1`` (or 2 and 3), ``calib.txt``, ``times.txt``."""
    first = 0 if (source / "image_0").is_dir() else 2
    lefts = files_in(need(source / f"image_{first}", source / "image_0"))
    times = need(source / "times.txt")
    stamps = as_nanoseconds(read_rows(times, 1)[:, 0], times)
    rights: list[Path | None] = [None] * len(lefts)
    if (source / f"image_{first + 1}").is_dir():
        rights = list(files_in(source / f"image_{first + 1}"))
    if not len(lefts) == len(stamps) == len(rights):
        raise InputError(
            f"{source}: {len(lefts)} left and {len(rights)} right images, {len(stamps)} times; expected as many of each"
        )
    calibration = need(source / "calib.txt")
    rows = read_rows(calibration, 13)
    projections = {row[0].rstrip(":"): as_floats(row[1:], calibration).reshape(3, 4) for row in rows}
    missing = {f"P{first}", f"P{first + 1}"} - projections.keys()
    if missing:
        raise InputError(f"{calibration} has no row {' or '.join(sorted(missing))}")
    left, right = projections[f"P{first}"], projections[f"P{first + 1}"]
    offset = np.linalg.inv(left[:, :3]) @ left[:, 3]
    zero_from_camera = np.eye(4)
    zero_from_camera[:3, 3] = -offset  # the poses are of camera 0, and P = K [I | offset]
    baseline = float(left[0, 3] - right[0, 3]) / left[0, 0]
    candidates = (source / "poses.txt", source / f"../../poses/{source.resolve().name}.txt")
    poses = [path for path in candidates if path.is_file()]
    return Scene(
        "kitti", options.camera or pinhole(left[:, :3], lefts[0]),
        tuple(SceneFrame(stamp, image, None, other) for stamp, image, other in zip(stamps.tolist(), lefts, rights)),
        read_kitti(poses[0], stamps).moved_by(zero_from_camera) if poses else None,
        baseline if rights[0] is not None else None,
    )


def read_new_tsukuba(source: Path, options: SceneOptions) -> Scene:
    """New Tsukuba as published: ``illumination/{daylight,…}/{left,right}``, ``groundtruth/``; 30 Hz, baseline 10 cm.

    The folder of one illumination may be given instead; of several the first, by name, is taken.
    The camera track is of the middle between both cameras: centimetres and degrees, y up and z backward.
    """
    light = source
    if source.resolve().parent.name != "illumination":
        lefts = sorted((source / "illumination").glob("*/left"))
        light = need(*lefts[:1], source / "illumination/daylight/left").parent
    truth = light.parent.parent / "groundtruth"
    lefts = files_in(need(light / "left"))
    rights: list[Path | None] = list(files_in(light / "right")) if (light / "right").is_dir() else [None] * len(lefts)
    depths: list[Path | None] = [None] * len(lefts)
    if (truth / "depth_maps/left").is_dir():
        depths = list(files_in(truth / "depth_maps/left", (".xml",)))
    track = need(truth / "camera_track.txt")
    rows = as_floats(read_rows(track, 6, ","), track)
    if not len(lefts) == len(rights) == len(depths) == len(rows):
        raise InputError(
            f"{light}: {len(lefts)} left and {len(rights)} right images, {len(depths)} depth maps, "
            f"{len(rows)} rows in {track}; expected as many of each"
        )
    stamps = [round(k * 1e9 / 30) for k in range(len(lefts))]
    centre_from_left = np.eye(4)
    centre_from_left[0, 3] = -0.05
    poses = tsukuba_poses(rows) @ centre_from_left
    matrix = np.array([[615.0, 0, 320], [0, 615, 240], [0, 0, 1]])
    return Scene(
        "new_tsukuba", options.camera or pinhole(matrix, lefts[0]),
        tuple(SceneFrame(*entry) for entry in zip(stamps, lefts, depths, rights)),
        Trajectory.from_samples(np.array(stamps), poses), 0.1 if rights[0] is not None else None, depth_factor=0.01,
    )


def tsukuba_poses(rows: np.ndarray) -> np.ndarray:
    """world_from_camera N×4×4 of rows X Y Z (cm) A B C (degrees about fixed x, y, z): y and z are turned round."""
    half = np.deg2rad(rows[:, 3:] * (1, -1, -1)) / 2
    (sa, sb, sc), (ca, cb, cc) = np.sin(half).T, np.cos(half).T
    quaternions = np.stack([
        sa * cb * cc - ca * sb * sc, ca * sb * cc + sa * cb * sc,
        ca * cb * sc - sa * sb * cc, ca * cb * cc + sa * sb * sc,
    ], axis=1)
    return poses_from_quaternions(rows[:, :3] * (0.01, -0.01, -0.01), quaternions)


@dataclass(frozen=True)
class Layout:
    """How a layout is recognised (any of `markers` exists), and read."""

    markers: tuple[str, ...]
    read: Callable[[Path, SceneOptions], Scene]


LAYOUTS = {
    "scene": Layout(("intrinsics.yaml", "rgb"), read_scene_folder),
    "tum_rgbd": Layout(("rgb.txt",), read_tum_rgbd),
    "kitti": Layout(("image_0", "image_2", "calib.txt"), read_kitti_odometry),
    "euroc": Layout(("mav0", "cam0"), read_euroc_asl),
    "new_tsukuba": Layout(("illumination", "../../illumination"), read_new_tsukuba),
}


def detect_layout(source: Path) -> str:
    """Name of the layout of the folder `source`; the most specific marker wins."""
    for name in ("tum_rgbd", "kitti", "euroc", "new_tsukuba", "scene"):
        if any((source / marker).exists() for marker in LAYOUTS[name].markers):
            return name
    looked = "; ".join(f"{name}: {' or '.join(layout.markers)}" for name, layout in LAYOUTS.items())
    raise InputError(f"{source} has no layout we know, expected one of ({looked}); point to the sequence's own folder")


def open_scene(source: Path, layout: str | None = None, options: SceneOptions | None = None) -> Scene:
    """The sequence in the folder `source`; `layout` is detected where it is None.

    Raises InputError, naming what is missing.
    """
    options = options or SceneOptions()
    if not source.is_dir():
        raise InputError(f"no folder {source}")
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    scene = LAYOUTS[layout or detect_layout(source)].read(source, options)
    if options.mono:
        frames = tuple(replace(frame, depth=None, right=None) for frame in scene.frames)
        scene = replace(scene, frames=frames, baseline=None)
    return scene
