"""Data set folders of every layout, made small: what is read must be what was put in, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scenes import SceneOptions, detect_layout, open_scene, tsukuba_poses
from kp_frontend.replay.trajectory import as_nanoseconds

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RNG = np.random.default_rng(0)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def gray(width: int = 32, height: int = 24) -> np.ndarray:
    return RNG.integers(0, 255, (height, width), np.uint8)


def tum_rows(count: int, step: float = 0.1) -> str:
    return "".join(f"{k * step:.3f} {k * 0.5} 0 0 0 0 0 1\n" for k in range(count))


def make_ours(root: Path, depth_type: str = "z") -> list[np.ndarray]:
    images = [gray() for _ in range(3)]
    for k, image in enumerate(images):
        save(root / "rgb" / f"{k:06d}.png", image)
        save(root / "depth" / f"{k:06d}.png", np.full((24, 32), 1500 + k, np.uint16))
    (root / "poses.txt").write_text("# stamp …\n" + tum_rows(3))
    values = {"fx": 40, "fy": 40, "cx": 15, "cy": 11, "width": 32, "height": 24, "depth_type": depth_type}
    (root / "intrinsics.yaml").write_text(yaml.safe_dump(values))
    return images


def test_our_layout_gives_images_depth_and_poses(tmp_path):
    images = make_ours(tmp_path)
    scene = open_scene(tmp_path)
    assert scene.layout == "scene"
    assert [frame.stamp for frame in scene.frames] == [0, 100_000_000, 200_000_000]
    for k, frame in enumerate(scene.frames):
        image, depth, right = scene.load(frame)
        assert np.array_equal(image, images[k])
        assert right is None
        assert depth.dtype == np.float32
        assert np.allclose(depth, 1.5 + k * 1e-3)
    assert scene.ground_truth.positions[:, 0].tolist() == [0, 0.5, 1.0]
    assert scene.camera.matrix[0].tolist() == [40, 0, 15]


def test_depth_along_the_ray_becomes_depth_along_z(tmp_path):
    make_ours(tmp_path, "ray")
    scene = open_scene(tmp_path)
    depth = scene.load(scene.frames[0])[1]
    assert depth[11, 15] == pytest.approx(1.5)
    assert depth[11, 31] == pytest.approx(1.5 / np.hypot(1, 16 / 40), rel=1e-5)


def test_float_depth_is_in_metres(tmp_path):
    make_ours(tmp_path)
    for path in (tmp_path / "depth").iterdir():
        np.save(path.with_suffix(".npy"), np.full((24, 32), 2.25, np.float32))
        path.unlink()
    scene = open_scene(tmp_path)
    assert np.allclose(scene.load(scene.frames[1])[1], 2.25)


@pytest.mark.parametrize("depth_type", ["Ray", "distance", None])
def test_a_kind_of_depth_that_is_not_read_is_refused(tmp_path, depth_type):
    make_ours(tmp_path, depth_type)
    with pytest.raises(InputError, match=rf"depth_type is {depth_type!r}, expected one of z, ray"):
        open_scene(tmp_path)


def test_stamps_are_exact_however_they_are_written(tmp_path):
    stamps = np.array(["1403636579.763555581", "1.403636579763555581e9", "-.5", "7"])
    expected = [1403636579_763555581, 1403636579_763555581, -500_000_000, 7_000_000_000]
    assert as_nanoseconds(stamps, tmp_path).tolist() == expected


@pytest.mark.parametrize("gone", ["poses.txt", "intrinsics.yaml", "rgb"])
def test_a_missing_part_of_a_scene_is_named(tmp_path, gone):
    make_ours(tmp_path)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=gone):
        open_scene(tmp_path, "scene")


def test_rows_must_belong_to_images(tmp_path):
    make_ours(tmp_path)
    (tmp_path / "poses.txt").write_text(tum_rows(2))
    with pytest.raises(InputError, match="2 rows for 3 images"):
        open_scene(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    make_ours(tmp_path)
    (tmp_path / "rgb" / "000001.png").write_bytes(b"no image")
    scene = open_scene(tmp_path)
    with pytest.raises(InputError, match="000001"):
        scene.load(scene.frames[1])


def make_tum(root: Path) -> None:
    stamps = (1305031102.175304, 1305031102.211214, 1305031102.275326)
    depth_stamps = (1305031102.160407, 1305031102.226738)
    for name, entries in (("rgb", stamps), ("depth", depth_stamps)):
        (root / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text("# stamp file\n" + "".join(f"{s:.6f} {name}/{s:.6f}.png\n" for s in entries))
    for stamp in stamps:
        save(root / f"rgb/{stamp:.6f}.png", np.zeros((480, 640, 3), np.uint8))
    for k, stamp in enumerate(depth_stamps):
        save(root / f"depth/{stamp:.6f}.png", np.full((480, 640), 5000 * (k + 1), np.uint16))
    (root / "groundtruth.txt").write_text("1305031102.1758 1 2 3 0 0 0 1\n")


def test_tum_associates_depth_by_stamp(tmp_path):
    root = tmp_path / "rgbd_dataset_freiburg2_desk"
    make_tum(root)
    scene = open_scene(root)
    assert scene.layout == "tum_rgbd"
    assert scene.frames[0].stamp == 1305031102_175304000
    depths = [scene.load(frame)[1] for frame in scene.frames]
    assert depths[0][0, 0] == pytest.approx(1)
    assert depths[1][0, 0] == pytest.approx(2)
    assert depths[2] is None  # the nearest is 49 ms away
    assert scene.camera.matrix[0, 0] == 520.9
    assert scene.ground_truth.stamps.tolist() == [1305031102_175800000]


def test_tum_of_an_unknown_camera_asks_for_intrinsics(tmp_path):
    make_tum(tmp_path / "desk")
    with pytest.raises(InputError, match="--intrinsics"):
        open_scene(tmp_path / "desk")
    make_ours(tmp_path / "ours")
    options = SceneOptions(tmp_path / "ours" / "intrinsics.yaml")
    assert open_scene(tmp_path / "desk", options=options).camera.matrix[0, 0] == 40


def make_kitti(root: Path, first: int = 0) -> Path:
    sequence = root / "sequences" / "07"
    for k in range(2):
        save(sequence / f"image_{first}/{k:06d}.png", gray())
        save(sequence / f"image_{first + 1}/{k:06d}.png", gray())
    shifts = (0, -386.1448, 45.38, -337.2877)
    rows = [f"P{k}: 718.856 0 607.2 {shift} 0 718.856 185.2 0 0 0 1 0" for k, shift in enumerate(shifts)]
    (sequence / "calib.txt").write_text("\n".join(rows) + "\n")
    (sequence / "times.txt").write_text("0.000000e+00\n1.037875e-01\n")
    (root / "poses").mkdir(exist_ok=True)
    (root / "poses" / "07.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0.1 0 1 0 0 0 0 1 1.5\n")
    return sequence


def test_kitti_has_two_cameras_and_their_baseline(tmp_path):
    scene = open_scene(make_kitti(tmp_path))
    assert scene.layout == "kitti"
    assert scene.baseline == pytest.approx(0.5371657)
    assert [frame.stamp for frame in scene.frames] == [0, 103787500]
    assert scene.load(scene.frames[0])[2] is not None
    assert scene.ground_truth.positions[1].tolist() == [0.1, 0, 1.5]
    assert open_scene(make_kitti(tmp_path), options=SceneOptions(mono=True)).frames[0].right is None


def test_kittis_poses_are_moved_to_the_colour_camera(tmp_path):
    scene = open_scene(make_kitti(tmp_path, first=2))
    assert scene.ground_truth.positions[0, 0] == pytest.approx(-45.38 / 718.856)
    assert scene.baseline == pytest.approx((45.38 + 337.2877) / 718.856)


def test_kitti_without_times_is_refused(tmp_path):
    sequence = make_kitti(tmp_path)
    (sequence / "times.txt").unlink()
    with pytest.raises(InputError, match=r"times\.txt"):
        open_scene(sequence)


def rotation(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    return cv2.Rodrigues(np.radians(degrees) * np.array(axis, float))[0]


EUROC_POINTS = np.array([[-0.6, -0.4, 3], [0.5, -0.3, 4], [0.1, 0.1, 2.5], [-0.7, 0.5, 4], [0.6, 0.5, 3.2]])
BODY_FROM_LEFT = np.eye(4)
BODY_FROM_LEFT[:3, :3], BODY_FROM_LEFT[:3, 3] = rotation(90, (0, 0, 1)), (0.02, -0.06, 0.01)
LEFT_FROM_RIGHT = np.eye(4)
LEFT_FROM_RIGHT[:3, :3], LEFT_FROM_RIGHT[:3, 3] = rotation(1.5, (0.6, 0.8, 0)), (0.11, 0.002, -0.001)
LENS = [-0.28, 0.07, 0.0002, 0.00002]


def make_euroc(root: Path) -> None:
    poses = {"cam0": BODY_FROM_LEFT, "cam1": BODY_FROM_LEFT @ LEFT_FROM_RIGHT}
    for name, pose in poses.items():
        camera = CameraModel(376, 240, np.array([[229.0, 0, 183], [0, 228.5, 124], [0, 0, 1]]), np.array(LENS))
        points = (np.linalg.inv(pose) @ BODY_FROM_LEFT @ np.c_[EUROC_POINTS, np.ones(5)].T).T[:, :3]
        y, x = np.mgrid[:240, :376]
        blobs = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8) for u, v in camera.project(points)]
        save(root / f"mav0/{name}/data/1403636579763555584.png", np.clip(255 * sum(blobs), 0, 255).astype(np.uint8))
        (root / f"mav0/{name}/data.csv").write_text("#t,file\n1403636579763555584,1403636579763555584.png\n")
        (root / f"mav0/{name}/sensor.yaml").write_text(yaml.safe_dump({
            "sensor_type": "camera", "camera_model": "pinhole", "resolution": [376, 240],
            "intrinsics": [229.0, 228.5, 183.0, 124.0], "distortion_model": "radial-tangential",
            "distortion_coefficients": LENS, "T_BS": {"rows": 4, "cols": 4, "data": pose.ravel().tolist()},
        }))
    (root / "mav0/state_groundtruth_estimate0").mkdir()
    (root / "mav0/state_groundtruth_estimate0/data.csv").write_text(
        "#t,p,q\n1403636579763555584,4.6,-1.8,0.8,0.5,0.5,0.5,0.5,0.1,0.2,0.3\n"
    )


def blob(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Centre of mass of what is bright within 8 px of a place."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image.astype(float) * (np.hypot(x - near[0], y - near[1]) < 8)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_a_euroc_pair_is_rectified_with_its_ground_truth(tmp_path):
    make_euroc(tmp_path)
    scene = open_scene(tmp_path)
    assert scene.layout == "euroc"
    assert scene.camera.undistorted
    assert scene.baseline == pytest.approx(np.linalg.norm(LEFT_FROM_RIGHT[:3, 3]), rel=1e-6)
    left, _, right = scene.load(scene.frames[0])
    world_from_body = np.eye(4)
    world_from_body[:3, :3], world_from_body[:3, 3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]], (4.6, -1.8, 0.8)
    world = world_from_body @ BODY_FROM_LEFT @ np.c_[EUROC_POINTS, np.ones(5)].T
    points = (np.linalg.inv(scene.ground_truth.poses[0]) @ world).T[:, :3]
    pixels = scene.camera.project(points)
    for point, pixel in zip(points, pixels):
        disparity = scene.camera.matrix[0, 0] * scene.baseline / point[2]
        assert np.allclose(blob(left, pixel), pixel, atol=0.3)
        assert np.allclose(blob(right, pixel - (disparity, 0)), pixel - (disparity, 0), atol=0.3)


def test_euroc_with_one_camera_keeps_its_lens(tmp_path):
    make_euroc(tmp_path)
    scene = open_scene(tmp_path, options=SceneOptions(mono=True))
    assert np.allclose(scene.camera.distortion, LENS)
    assert scene.frames[0].right is None
    world_from_body = np.eye(4)
    world_from_body[:3, :3], world_from_body[:3, 3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]], (4.6, -1.8, 0.8)
    assert np.allclose(scene.ground_truth.poses[0], world_from_body @ BODY_FROM_LEFT)


def make_tsukuba(root: Path) -> None:
    for k in range(2):
        for side, letter in (("left", "L"), ("right", "R")):
            save(root / f"illumination/daylight/{side}/tsukuba_daylight_{letter}_{k + 1:05d}.png",
                 np.zeros((24, 32, 4), np.uint8))
        xml = root / f"groundtruth/depth_maps/left/tsukuba_depth_L_{k + 1:05d}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        file = cv2.FileStorage(str(xml), cv2.FILE_STORAGE_WRITE)
        file.write("depth", np.full((24, 32), 150.0 + k, np.float32))
        file.release()
    (root / "groundtruth/camera_track.txt").write_text("10,20,30,0,0,0\n11,20,30,10,0,0\n")


def test_new_tsukuba_turns_y_and_z_round_and_reads_centimetres(tmp_path):
    make_tsukuba(tmp_path)
    for source in (tmp_path, tmp_path / "illumination/daylight"):
        scene = open_scene(source)
        assert scene.layout == "new_tsukuba"
        assert np.allclose(scene.ground_truth.positions[0], (0.1 - 0.05, -0.2, -0.3))
        image, depth, right = scene.load(scene.frames[1])
        assert image.shape == right.shape == (24, 32, 3)
        assert np.allclose(depth, 1.51)
        assert scene.baseline == pytest.approx(0.1)


def test_new_tsukubas_angles():
    rows = np.array([[0, 0, 0, 10, 0, 0], [0, 0, 0, 0, 20, 0], [0, 0, 0, 0, 0, 30], [0, 0, 0, 10, 20, 30]], float)
    turns = rotation(10, (1, 0, 0)), rotation(-20, (0, 1, 0)), rotation(-30, (0, 0, 1))
    expected = [*turns, turns[2] @ turns[1] @ turns[0]]
    assert np.allclose(tsukuba_poses(rows)[:, :3, :3], expected)


def test_a_folder_without_layout_lists_what_is_known(tmp_path):
    with pytest.raises(InputError, match=r"tum_rgbd: rgb\.txt"):
        detect_layout(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        open_scene(tmp_path / "nowhere")
    with pytest.raises(InputError, match="unknown layout 'colmap'"):
        open_scene(tmp_path, "colmap")


@pytest.mark.parametrize(
    ("name", "length"), [("rgbd/redkitchen_a", 3.4), ("vo/kitti_06", 59.9), ("vo/new_tsukuba", 3.77)]
)
def test_real_scenes_have_the_paths_their_readme_says(name, length):
    if not (SHARED / name).is_dir():
        pytest.skip("the development data is not here")
    assert open_scene(SHARED / name).ground_truth.length == pytest.approx(length, rel=0.01)
