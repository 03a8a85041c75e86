"""Views of a slanted plane with exact depth, and writers of them in every layout that ``data.layouts`` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import yaml
from posed_scenes import DISTANCE, SLANT, Rectangle, moving_poses, render, texture

from kp_frontend.camera import CameraModel
from kp_frontend.geometry import invert
from kp_frontend.quaternions import quaternions_from_poses
from kp_training.data.layouts.poses import OPENCV_FROM_OPENGL

STEP = 0.15


@dataclass(frozen=True, eq=False)
class View:
    """What a frame must be once it is read: image, z-depth, K, world_from_camera."""

    image: np.ndarray
    depth: np.ndarray
    matrix: np.ndarray
    pose: np.ndarray


@cache
def plane() -> Rectangle:
    along = np.array([[1, 0, SLANT], [0, 1, 0]]) / [[np.hypot(1, SLANT)], [1]]
    return Rectangle(np.array([0, 0, DISTANCE]), along, (np.inf, np.inf), texture(0))


def matrix_of(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def make_views(
    count: int = 3, height: int = 96, width: int = 128, matrix: np.ndarray | None = None, turn: float = 0.02,
) -> list[View]:
    """Views along a path; a corner of every depth map is unknown."""
    matrix = matrix_of(0.9 * width, 0.92 * width, 0.48 * width, 0.53 * height) if matrix is None else matrix
    views = []
    for pose in moving_poses(count, STEP, turn):
        image, depth = render([plane()], pose, matrix, height, width)
        depth[: height // 8, : width // 8] = 0
        views.append(View(image, depth, matrix, pose))
    return views


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def millimetres(view: View, unknown: int = 0) -> np.ndarray:
    return np.where(view.depth > 0, np.rint(view.depth * 1000), unknown).astype(np.uint16)


def rows_text(matrix: np.ndarray) -> str:
    return "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in matrix)


def tum_rows(stamps: np.ndarray, poses: np.ndarray) -> str:
    values = np.c_[poses[:, :3, 3], quaternions_from_poses(poses)]
    return "".join(f"{stamp:.6f} " + " ".join(f"{value:.9f}" for value in row) + "\n"
                   for stamp, row in zip(stamps, values))


def write_intrinsics(path: Path, view: View, **more: object) -> None:
    (fx, _, cx), (_, fy, cy) = view.matrix[:2].tolist()
    height, width = view.depth.shape
    values = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": width, "height": height, **more}
    write_text(path, yaml.safe_dump(values))


def write_ours(root: Path, views: list[View]) -> None:
    for k, view in enumerate(views):
        save(root / f"rgb/{k:06d}.png", view.image)
        save(root / f"depth/{k:06d}.png", millimetres(view))
    write_text(root / "poses.txt", tum_rows(np.arange(len(views)) * 0.1, np.stack([view.pose for view in views])))
    write_intrinsics(root / "intrinsics.yaml", views[0])


def write_seven_scenes(root: Path, views: list[View]) -> None:
    for k, view in enumerate(views):
        save(root / f"frame-{k:06d}.color.png", view.image)
        save(root / f"frame-{k:06d}.depth.png", millimetres(view, 65535))
        write_text(root / f"frame-{k:06d}.pose.txt", rows_text(view.pose))
    write_intrinsics(root / "intrinsics.yaml", views[0])


def write_tum_rgbd(root: Path, views: list[View]) -> None:
    """The folder's name must hold freiburg3; poses are known between the images only."""
    for kind, late in (("rgb", 0.0), ("depth", 0.004)):
        stamps = 100 + np.arange(len(views)) * 0.1 + late
        write_text(root / f"{kind}.txt", "".join(f"{stamp:.6f} {kind}/{stamp:.6f}.png\n" for stamp in stamps))
        for stamp, view in zip(stamps, views):
            picture = view.image if kind == "rgb" else np.rint(view.depth * 5000).astype(np.uint16)
            save(root / f"{kind}/{stamp:.6f}.png", picture)
    turn = 0.02
    fine = np.arange(2 * len(views) + 1) - 0.5  # in half frames, a quarter of a frame early
    poses = np.tile(np.eye(4), (len(fine), 1, 1))
    for pose, k in zip(poses, fine / 2):
        pose[:3, :3] = cv2.Rodrigues(k * turn * np.array([0.5, -1, 1]))[0]
        pose[:3, 3] = k * STEP * np.array([1, 0.2, 0.1])
    write_text(root / "groundtruth.txt", tum_rows(100 + fine * 0.05, poses))


def write_scannet(root: Path, views: list[View]) -> None:
    """Colour is twice as large as depth; names sort wrongly as text."""
    view = views[0]
    height, width = view.depth.shape
    matrix = CameraModel(width, height, view.matrix).scaled(2 * width, 2 * height).matrix
    for k, view in enumerate(views):
        name = f"{8 + k}"
        save(root / f"color/{name}.png", render([plane()], view.pose, matrix, 2 * height, 2 * width)[0])
        save(root / f"depth/{name}.png", millimetres(view))
        write_text(root / f"pose/{name}.txt", rows_text(view.pose))
    whole = np.eye(4)
    whole[:3, :3] = views[0].matrix
    write_text(root / "intrinsic/intrinsic_depth.txt", rows_text(whole))


def write_kitti(root: Path, views: list[View]) -> None:
    for k, view in enumerate(views):
        for camera in (0, 1):
            save(root / f"image_{camera}/{k:06d}.png", cv2.cvtColor(view.image, cv2.COLOR_BGR2GRAY))
    projection = np.c_[views[0].matrix, np.zeros(3)]
    second = projection.copy()
    second[0, 3] = -0.5 * projection[0, 0]
    text = "".join(f"P{k}: " + " ".join(f"{value:.9g}" for value in (second if k % 2 else projection).ravel()) + "\n"
                   for k in range(4))
    write_text(root / "calib.txt", text)
    write_text(root / "times.txt", "".join(f"{k * 0.1:.6e}\n" for k in range(len(views))))
    write_text(root / "poses.txt", "".join(rows_text(view.pose[:3].reshape(1, 12)) for view in views))


def write_euroc(root: Path, views: list[View]) -> None:
    body_from_camera = np.eye(4)
    body_from_camera[:3, :3] = cv2.Rodrigues(np.array([0.1, 0.2, 1.5]))[0]
    body_from_camera[:3, 3] = 0.02, -0.06, 0.01
    (fx, _, cx), (_, fy, cy) = views[0].matrix[:2].tolist()
    height, width = views[0].depth.shape
    stamps = 1403636579763555584 + 50_000_000 * np.arange(len(views))
    for stamp, view in zip(stamps, views):
        save(root / f"mav0/cam0/data/{stamp}.png", cv2.cvtColor(view.image, cv2.COLOR_BGR2GRAY))
    write_text(root / "mav0/cam0/data.csv", "#t,file\n" + "".join(f"{stamp},{stamp}.png\n" for stamp in stamps))
    write_text(root / "mav0/cam0/sensor.yaml", yaml.safe_dump({
        "resolution": [width, height], "intrinsics": [fx, fy, cx, cy], "distortion_model": "radial-tangential",
        "distortion_coefficients": [0.0] * 4, "T_BS": {"data": body_from_camera.ravel().tolist()},
    }))
    bodies = np.stack([view.pose for view in views]) @ np.linalg.inv(body_from_camera)
    values = np.c_[bodies[:, :3, 3], quaternions_from_poses(bodies)[:, [3, 0, 1, 2]]]
    lines = [f"{stamp}," + ",".join(f"{value:.9f}" for value in row) for stamp, row in zip(stamps, values)]
    write_text(root / "mav0/state_groundtruth_estimate0/data.csv", "#t,p,q\n" + "\n".join(lines) + "\n")


def write_new_tsukuba(root: Path, views: list[View]) -> None:
    """The camera must not turn; depth in centimetres, the track that of the middle between both cameras."""
    for k, view in enumerate(views):
        save(root / f"illumination/daylight/left/L_{k:05d}.png", view.image)
        xml = root / f"groundtruth/depth_maps/left/L_{k:05d}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        file = cv2.FileStorage(str(xml), cv2.FILE_STORAGE_WRITE)
        file.write("depth", view.depth * 100)
        file.release()
    middles = np.stack([view.pose[:3, 3] for view in views]) + (0.05, 0, 0)
    rows = np.c_[middles * (100, -100, -100), np.zeros((len(views), 3))]
    write_text(root / "groundtruth/camera_track.txt", "".join(",".join(map(str, row)) + "\n" for row in rows))


def write_transforms(root: Path, views: list[View], lens: dict[str, float] | None = None) -> None:
    """nerfstudio's; with a lens the pictures are bent, and depth with them."""
    (fx, _, cx), (_, fy, cy) = views[0].matrix[:2].tolist()
    height, width = views[0].depth.shape
    frames = []
    for k, view in enumerate(views):
        image, depth = bent(view, lens) if lens else (view.image, view.depth)
        save(root / f"images/{k}.png", image)
        save_array(root / f"depth/{k}.npy", depth)
        frames.append({"file_path": f"images/{k}.png", "depth_file_path": f"depth/{k}.npy",
                       "transform_matrix": (view.pose @ OPENCV_FROM_OPENGL).tolist()})
    values = {"fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5, "w": width, "h": height, **(lens or {})}
    write_text(root / "transforms.json", json.dumps({**values, "frames": frames[::-1]}))


def bent(view: View, lens: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Image and depth as a camera with k1 k2 p1 p2 would have taken them."""
    height, width = view.depth.shape
    camera = CameraModel(width, height, view.matrix, np.array([lens[key] for key in ("k1", "k2", "p1", "p2")]))
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    straight = (camera.bearings(pixels) @ view.matrix.T)[:, :2].reshape(height, width, 2).astype(np.float32)
    return (cv2.remap(view.image, straight, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            cv2.remap(view.depth, straight, None, cv2.INTER_NEAREST))


def write_blender(root: Path, views: list[View]) -> None:
    """fx = fy from an angle, centre in the middle, names without ending, no depth."""
    width = views[0].depth.shape[1]
    frames = []
    for k, view in enumerate(views):
        save(root / f"train/r_{k}.png", cv2.cvtColor(view.image, cv2.COLOR_BGR2BGRA))
        frames.append({"file_path": f"./train/r_{k}", "transform_matrix": (view.pose @ OPENCV_FROM_OPENGL).tolist()})
    angle = 2 * np.arctan(width / 2 / views[0].matrix[0, 0])
    write_text(root / "transforms_train.json", json.dumps({"camera_angle_x": angle, "frames": frames}))


def write_nerf(root: Path, views: list[View]) -> None:
    """640×480 with the layout's own camera; depth along the ray."""
    for k, view in enumerate(views):
        height, width = view.depth.shape
        y, x = np.mgrid[:height, :width].astype(float)
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(view.matrix).T
        part = f"training/castle{k + 9}"  # 9, 10, 11: in the order of numbers, not of letters
        save(root / f"NeRF/images/{part}.png", view.image)
        save_array(root / f"NeRF/depth/{part}.npy", (view.depth * np.linalg.norm(rays, axis=-1)).astype(np.float32))
        save_array(root / f"NeRF/camera_transforms/{part}.npy", view.pose @ OPENCV_FROM_OPENGL)


def write_megadepth(root: Path, views: list[View]) -> None:
    """A COLMAP model as text beside ``imgs`` and ``depths``; unknown depth is negative."""
    import h5py

    (fx, _, cx), (_, fy, cy) = views[0].matrix[:2].tolist()
    height, width = views[0].depth.shape
    lines = ["# images, two lines each"]
    for k, view in enumerate(views):
        save(root / f"dense0/imgs/{k}.png", view.image)
        (root / "dense0/depths").mkdir(parents=True, exist_ok=True)
        with h5py.File(root / f"dense0/depths/{k}.h5", "w") as file:
            file["depth"] = np.where(view.depth > 0, view.depth, -1)
        row = camera_from_world_row(view)
        lines += [f"{k + 1} " + " ".join(f"{value:.9f}" for value in row) + f" 1 {k}.png", "" if k else "1.5 2.5 -1"]
    write_text(root / "sparse/images.txt", "\n".join(lines) + "\n")
    write_text(root / "sparse/cameras.txt", f"# one\n1 PINHOLE {width} {height} {fx} {fy} {cx + 0.5} {cy + 0.5}\n")


def camera_from_world_row(view: View) -> list[float]:
    """qw qx qy qz tx ty tz, as COLMAP has them."""
    camera_from_world = invert(view.pose)
    qx, qy, qz, qw = quaternions_from_poses(camera_from_world[None])[0]
    return [qw, qx, qy, qz, *camera_from_world[:3, 3]]


def write_blended_mvs(root: Path, views: list[View]) -> None:
    for k, view in enumerate(views):
        save(root / f"blended_images/{k:08d}.png", view.image)
        save(root / f"blended_images/{k:08d}_masked.png", view.image)
        height, width = view.depth.shape
        numbers = view.depth[::-1].astype("<f4").tobytes()
        (root / "rendered_depth_maps").mkdir(exist_ok=True)
        (root / f"rendered_depth_maps/{k:08d}.pfm").write_bytes(f"Pf\n{width} {height}\n-1.0\n".encode() + numbers)
        write_text(root / f"cams/{k:08d}_cam.txt", f"extrinsic\n{rows_text(invert(view.pose))}\nintrinsic\n"
                   f"{rows_text(view.matrix)}\n1.0 0.1 128 9.0\n")


def write_bag(root: Path, views: list[View]) -> None:
    """A bag ``recording`` with the pose topic's messages between the images'."""
    from kp_frontend.replay.bag_writer import BagWriter

    height, width = views[0].depth.shape
    poses = moving_poses(2 * len(views), STEP / 2, 0.01)
    with BagWriter(root / "recording", CameraModel(width, height, views[0].matrix)) as bag:
        for k, pose in enumerate(poses):
            bag.write_pose(10**9 + k * 50_000_000, pose)
            if k % 2 == 0:
                bag.write(10**9 + k * 50_000_000, views[k // 2].image, views[k // 2].depth)
