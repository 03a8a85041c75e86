"""Data set folders → one kind of sequence: calibrated images with stamps, depth or a second image, ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import yaml

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.quaternions import poses_from_quaternions
from kp_frontend.replay.association import nearest
from kp_frontend.replay.trajectory import (
    Trajectory,
    as_floats,
    as_nanoseconds,
    read_euroc,
    read_kitti,
    read_rows,
    read_tum,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class SceneOptions:
    """intrinsics: YAML that replaces the data set's calibration.  mono: leave the second camera and depth out."""

    intrinsics: Path | None = None
    mono: bool = False

    @property
    def camera(self) -> CameraModel | None:
        """The camera of `intrinsics`."""
        return CameraModel.from_yaml(self.intrinsics) if self.intrinsics is not None else None


@dataclass(frozen=True)
class SceneFrame:
    """Files of one instant; stamp in nanoseconds."""

    stamp: int
    image: Path
    depth: Path | None = None
    right: Path | None = None


@dataclass(frozen=True, eq=False)
class Rectification:
    """Maps of `cv2.remap` that make rows of the left and the right image correspond."""

    left: tuple[np.ndarray, np.ndarray]
    right: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Scene:
    """A posed sequence of one camera, as files.

    camera: of the images that `load` returns.  baseline: metres to the second camera of a rectified pair.
    ground_truth: world_from_camera of that camera.  depth_factor: file values × it = metres along z;
    a number, or H×W.  rectification: applied by `load`.
    """

    layout: str
    camera: CameraModel
    frames: tuple[SceneFrame, ...]
    ground_truth: Trajectory | None = None
    baseline: float | None = None
    depth_factor: float | np.ndarray = 1.0
    rectification: Rectification | None = None

    def load(self, frame: SceneFrame) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Image, depth (float32 metres, 0 = unknown) and right image of `frame`; None where there is none."""
        image = read_image(frame.image)
        right = read_image(frame.right) if frame.right is not None else None
        depth = None
        if frame.depth is not None:
            depth = (read_depth(frame.depth) * self.depth_factor).astype(np.float32)
            if depth.shape != image.shape[:2]:
                raise InputError(f"{frame.depth} is {depth.shape[1]}×{depth.shape[0]}, unlike its image {frame.image}")
        if self.rectification is not None:
            image = cv2.remap(image, *self.rectification.left, cv2.INTER_LINEAR)
            right = None if right is None else cv2.remap(right, *self.rectification.right, cv2.INTER_LINEAR)
        return image, depth, right


def read_image(path: Path) -> np.ndarray:
    """H×W or H×W×3 BGR uint8; 16-bit images keep their high byte, alpha is dropped."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{path} is missing or no readable image")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return np.ascontiguousarray(image[..., :3]) if image.ndim == 3 and image.shape[2] == 4 else image


def _read_depth_image(path: Path) -> np.ndarray | None:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def _read_depth_xml(path: Path) -> np.ndarray | None:
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    return file.getFirstTopLevelNode().mat()


DEPTH_READERS: dict[str, Callable[[Path], np.ndarray | None]] = {
    ".png": _read_depth_image, ".npy": lambda path: np.load(path), ".xml": _read_depth_xml,
}


def read_depth(path: Path) -> np.ndarray:
    """H×W numbers in the file's own unit; what is not finite becomes 0."""
    try:
        depth = DEPTH_READERS[path.suffix.lower()](path)
    except (OSError, ValueError, SystemError, cv2.error) as error:
        raise InputError(f"{path} is no readable depth map: {error}") from None
    if depth is None or depth.ndim != 2:
        raise InputError(f"{path} is missing or no depth map of one channel")
    return np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)


def _need(*candidates: Path) -> Path:
    """The first of `candidates` that exists; InputError names them all."""
    for path in candidates:
        if path.exists():
            return path
    names = " or ".join(path.name for path in candidates)
    raise InputError(f"{candidates[0].parent} has no {names}, which this layout needs")


def _files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not found:
        raise InputError(f"{folder} holds no files of kind {' '.join(suffixes)}")
    return found


def _pinhole(matrix: np.ndarray, image: Path) -> CameraModel:
    height, width = read_image(image).shape[:2]
    return CameraModel(width, height, np.asarray(matrix, float))


def read_scene_folder(source: Path, options: SceneOptions) -> Scene:
    """Ours: ``rgb/``, ``depth/`` (mm PNG or m .npy), ``poses.txt`` or ``groundtruth.txt``, ``intrinsics.yaml``."""
    images = _files(_need(source / "rgb"))
    calibration = options.intrinsics or _need(source / "intrinsics.yaml")
    camera = CameraModel.from_yaml(calibration)
    poses = _need(source / "poses.txt", source / "groundtruth.txt")
    stamps = as_nanoseconds(read_rows(poses, 8)[:, 0], poses)
    if len(stamps) != len(images):
        raise InputError(f"{poses} has {len(stamps)} rows for {len(images)} images; row k must belong to image k")
    depths: list[Path | None] = [None] * len(images)
    factor: float | np.ndarray = 1e-3
    if (source / "depth").is_dir():
        found = _files(source / "depth", tuple(DEPTH_READERS))
        by_stem = {path.stem: path for path in found}
        depths = list(found) if len(found) == len(images) else [by_stem.get(path.stem) for path in images]
        if not any(depths):
            raise InputError(f"{source / 'depth'}: {len(found)} files, none named like the {len(images)} images")
        factor = 1.0 if found[0].suffix == ".npy" else 1e-3
        values = yaml.safe_load(calibration.read_text()) or {}
        if values.get("depth_type", "z") == "ray":
            factor = factor / _ray_lengths(camera)
    frames = tuple(SceneFrame(*entry) for entry in zip(stamps.tolist(), images, depths))
    return Scene("scene", camera, frames, read_tum(poses), depth_factor=factor)


def _ray_lengths(camera: CameraModel) -> np.ndarray:
    """H×W: length of each pixel's bearing of z = 1."""
    pixels = np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1).reshape(-1, 2)
    bearings = camera.bearings(pixels.astype(np.float32))
    return np.linalg.norm(bearings, axis=1).reshape(camera.height, camera.width)


# Calibrations that the TUM RGB-D benchmark publishes for the colour cameras: fx fy cx cy, k1 k2 p1 p2 k3.
TUM_CAMERAS = {
    1: ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    2: ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    3: ((535.4, 539.2, 320.1, 247.6), (0.0, 0.0, 0.0, 0.0, 0.0)),
}


def read_tum_rgbd(source: Path, options: SceneOptions) -> Scene:
    """TUM RGB-D: ``rgb.txt``, ``depth.txt`` (5000 units a metre, at most 20 ms off), ``groundtruth.txt``."""
    lists = {name: read_rows(_need(source / f"{name}.txt"), 2) for name in ("rgb", "depth")}
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
    name = source.resolve().name
    for number, ((fx, fy, cx, cy), distortion) in TUM_CAMERAS.items():
        if f"freiburg{number}" in name or f"fr{number}" in name:
            matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
            return CameraModel(640, 480, matrix, np.array(distortion))
    raise InputError(f"no camera is known for {name!r} (TUM names hold freiburg1, 2 or 3); give --intrinsics FILE")


def read_kitti_odometry(source: Path, options: SceneOptions) -> Scene:
    """KITTI odometry, one ``sequences/NN``: ``image_0`` and ``image_1`` (or 2 and 3), ``calib.txt``, ``times.txt``."""
    first = 0 if (source / "image_0").is_dir() else 2
    lefts = _files(_need(source / f"image_{first}", source / "image_0"))
    times = _need(source / "times.txt")
    stamps = as_nanoseconds(read_rows(times, 1)[:, 0], times)
    rights: list[Path | None] = [None] * len(lefts)
    if (source / f"image_{first + 1}").is_dir():
        rights = list(_files(source / f"image_{first + 1}"))
    if not len(lefts) == len(stamps) == len(rights):
        raise InputError(
            f"{source}: {len(lefts)} left and {len(rights)} right images, {len(stamps)} times; expected as many of each"
        )
    calibration = _need(source / "calib.txt")
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
        "kitti", options.camera or _pinhole(left[:, :3], lefts[0]),
        tuple(SceneFrame(stamp, image, None, other) for stamp, image, other in zip(stamps.tolist(), lefts, rights)),
        read_kitti(poses[0], stamps).moved_by(zero_from_camera) if poses else None,
        baseline if rights[0] is not None else None,
    )


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
    rows = read_rows(_need(folder / "data.csv"), 2, ",")
    return rows[:, 0].astype(np.int64).tolist(), [folder / "data" / name for name in rows[:, 1]]


def _euroc_sensor(folder: Path) -> tuple[CameraModel, np.ndarray]:
    """Camera and body_from_camera (4×4) of ``sensor.yaml``."""
    path = _need(folder / "sensor.yaml")
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


def read_new_tsukuba(source: Path, options: SceneOptions) -> Scene:
    """New Tsukuba as published: ``illumination/{daylight,…}/{left,right}``, ``groundtruth/``; 30 Hz, baseline 10 cm.

    The folder of one illumination may be given instead; of several the first, by name, is taken.
    The camera track is of the middle between both cameras: centimetres and degrees, y up and z backward.
    """
    light = source
    if source.resolve().parent.name != "illumination":
        lefts = sorted((source / "illumination").glob("*/left"))
        light = _need(*lefts[:1], source / "illumination/daylight/left").parent
    truth = light.parent.parent / "groundtruth"
    lefts = _files(_need(light / "left"))
    rights: list[Path | None] = list(_files(light / "right")) if (light / "right").is_dir() else [None] * len(lefts)
    depths: list[Path | None] = [None] * len(lefts)
    if (truth / "depth_maps/left").is_dir():
        depths = list(_files(truth / "depth_maps/left", (".xml",)))
    track = _need(truth / "camera_track.txt")
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
        "new_tsukuba", options.camera or _pinhole(matrix, lefts[0]),
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
