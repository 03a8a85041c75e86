"""Posed data of every layout, made small: what is read must be what was put in, and what is wrong is said."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import posed_layouts as make
import pytest
import yaml
from posed_layouts import View, make_views, matrix_of

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.geometry import invert
from kp_frontend.replay.bag import BagSequence
from kp_frontend.replay.trajectory import Trajectory
from kp_training.data.layouts import LAYOUTS, open_posed
from kp_training.data.layouts.bags import _as_scene
from kp_training.data.layouts.depth_files import read_pfm
from kp_training.data.layouts.nerf import NERF_CAMERA, follow_each_other
from kp_training.data.layouts.poses import LONGEST_GAP, REACH, poses_at
from kp_training.data.posed import PosedScene

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TUM_MATRIX = matrix_of(535.4, 539.2, 320.1, 247.6)
TSUKUBA_MATRIX = matrix_of(615, 615, 320, 240)
BLENDER_MATRIX = matrix_of(100, 100, 63.5, 47.5)
LENS = {"k1": 0.15, "k2": -0.05, "p1": 0.004, "p2": -0.003}

# Layout → what writes it, the folder's name, its views, whether it is metric and ordered, and has depth.
CASES = {
    "scene": (make.write_ours, "room", {}, True, True, True),
    "tum_rgbd": (make.write_tum_rgbd, "rgbd_dataset_freiburg3_x",
                 {"height": 480, "width": 640, "matrix": TUM_MATRIX}, True, True, True),
    "kitti": (make.write_kitti, "07", {}, True, True, False),
    "euroc": (make.write_euroc, "MH_01", {}, True, True, False),
    "new_tsukuba": (make.write_new_tsukuba, "tsukuba",
                    {"matrix": TSUKUBA_MATRIX, "height": 240, "width": 320, "turn": 0}, True, True, True),
    "seven_scenes": (make.write_seven_scenes, "seq-01", {}, True, True, True),
    "scannet": (make.write_scannet, "scene0000_00", {}, True, True, True),
    "transforms": (make.write_transforms, "fox", {"count": 12}, False, True, True),
    "nerf": (make.write_nerf, "renders",
             {"height": 480, "width": 640, "matrix": NERF_CAMERA.matrix, "count": 3}, False, True, True),
    "megadepth": (make.write_megadepth, "0000", {}, False, False, True),
    "blended_mvs": (make.write_blended_mvs, "5a3c", {}, False, False, True),
    "bag": (make.write_bag, "bags", {}, True, True, True),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path_factory.mktemp("cache")))


def check_views(scene: PosedScene, views: list[View], grey: bool = False) -> None:
    """Every frame is the view that was written, to what the files' rounding allows."""
    assert len(scene) == len(views)
    assert len(set(scene.names)) == len(views)
    for k, view in enumerate(views):
        frame = scene[k]
        assert np.allclose(frame.world_from_camera, view.pose, atol=1e-6)
        assert np.allclose(frame.intrinsics, view.matrix, atol=1e-4)
        assert frame.image.dtype == np.uint8
        assert frame.image.shape == view.image.shape
        picture = view.image
        if grey:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        assert np.abs(frame.image.astype(int) - picture).mean() < 3  # ScanNet's is averaged from a larger one
        if frame.depth is not None:
            assert frame.depth.dtype == np.float32
            assert np.array_equal(frame.depth == 0, view.depth == 0)
            assert np.allclose(frame.depth, view.depth, atol=6e-4)


def reprojection_error(scene: PosedScene, source: int, target: int) -> float:
    """Median relative difference of depth where frame `source` falls into frame `target`."""
    one, other = scene[source], scene[target]
    y, x = np.nonzero(one.depth)
    pixels = np.stack([x, y, np.ones_like(x)]).astype(float)
    points = np.linalg.inv(one.intrinsics) @ pixels * one.depth[y, x]
    moved = invert(other.world_from_camera) @ one.world_from_camera
    seen = moved[:3, :3] @ points + moved[:3, 3:]
    u, v = np.rint((other.intrinsics @ seen)[:2] / seen[2]).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < other.image.shape[1]) & (v < other.image.shape[0]) & (seen[2] > 0)
    known = other.depth[v[inside], u[inside]]
    return float(np.median(np.abs(known - seen[2][inside])[known > 0] / known[known > 0]))


@pytest.mark.parametrize("layout", CASES)
def test_a_layout_gives_the_views_that_were_written(tmp_path, layout):
    write, name, options, metric, ordered, has_depth = CASES[layout]
    views = make_views(**options)
    write(tmp_path / name, views)
    scenes = open_posed(tmp_path / name)
    assert len(scenes) == 1
    scene = pickle.loads(pickle.dumps(scenes[0]))  # as a loader's process has it
    assert (scene.metric, scene.ordered, scene.has_depth) == (metric, ordered, has_depth)
    assert np.allclose(scene.poses, [view.pose for view in views], atol=1e-6)
    check_views(scene, views, grey=layout in ("kitti", "euroc"))
    if has_depth:
        assert reprojection_error(scene, 0, len(views) - 1) < 0.01


def test_every_layout_has_a_case():
    assert set(CASES) | {"colmap"} == set(LAYOUTS)


def test_the_reprojection_of_a_wrong_convention_would_be_seen(tmp_path):
    make.write_ours(tmp_path, make_views())
    scene = open_posed(tmp_path)[0]
    wrong = PosedScene(scene.name, "", scene.names, scene.poses @ make.OPENCV_FROM_OPENGL, scene.intrinsics, scene.read,
                       True, True, True)
    assert reprojection_error(wrong, 0, 2) > 0.02


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean, inside a border, of what blur (two interpolations) leaves of the difference."""
    blurred = [cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1) for image in (one, other)]
    return float(np.abs(blurred[0] - blurred[1])[16:-16, 16:-16].mean())


def test_a_lens_is_taken_out_of_image_and_depth(tmp_path):
    views = make_views()
    make.write_transforms(tmp_path, views, LENS)
    scene = open_posed(tmp_path)[0]
    inner = np.s_[16:-16, 16:-16]
    for k, view in enumerate(views):
        frame = scene[k]
        assert difference(frame.image, view.image) < 2
        known = (frame.depth > 0) & (view.depth > 0)
        assert known[inner].all()
        assert np.abs(frame.depth - view.depth)[known].max() < 0.05  # the plane's slope over a pixel
    assert difference(make.bent(views[0], LENS)[0], views[0].image) > 4


@pytest.mark.parametrize("said", [{"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True, "p1": 0.0}])
def test_a_fisheye_of_nerfstudio_or_instant_ngp_is_one(tmp_path, said):
    make.write_transforms(tmp_path, make_views())
    values = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").write_text(json.dumps({**values, **said, "k1": 0.1}))
    camera = open_posed(tmp_path)[0].read.cameras[0]
    assert camera.model == "equidistant"
    assert camera.distortion.tolist() == [0.1, 0, 0, 0]


def test_each_frame_may_be_of_a_fisheye_or_not(tmp_path):
    make.write_transforms(tmp_path, make_views(2))
    values = json.loads((tmp_path / "transforms.json").read_text())
    values["frames"][0]["is_fisheye"] = True  # written last, read last
    (tmp_path / "transforms.json").write_text(json.dumps(values))
    assert [camera.model for camera in open_posed(tmp_path)[0].read.cameras] == ["plumb_bob", "equidistant"]


def test_a_lens_that_is_not_read_is_refused(tmp_path):
    make.write_transforms(tmp_path, make_views(2))
    values = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").write_text(json.dumps({**values, "k4": 0.01}))
    with pytest.raises(InputError, match=r"k4 = 0\.01 of a lens that is no fisheye"):
        open_posed(tmp_path)
    (tmp_path / "transforms.json").write_text(json.dumps({**values, "camera_model": "EQUIRECTANGULAR"}))
    with pytest.raises(InputError, match="camera_model 'EQUIRECTANGULAR' is not read"):
        open_posed(tmp_path)
    said = {"camera_model": "OPENCV", "is_fisheye": True}
    (tmp_path / "transforms.json").write_text(json.dumps({**values, **said}))
    with pytest.raises(InputError, match="camera_model is OPENCV, yet is_fisheye is True"):
        open_posed(tmp_path)


def test_blenders_angle_and_names_without_ending(tmp_path):
    views = make_views(matrix=BLENDER_MATRIX)
    make.write_blender(tmp_path, views)
    check_views(open_posed(tmp_path)[0], views)


def test_each_frame_may_have_intrinsics_of_its_own(tmp_path):
    views = make_views(2)
    make.write_transforms(tmp_path, views)
    values = json.loads((tmp_path / "transforms.json").read_text())
    values["frames"][0]["fl_x"] = 321.0  # written last, read last
    (tmp_path / "transforms.json").write_text(json.dumps(values))
    scene = open_posed(tmp_path / "transforms.json")[0]
    assert scene.intrinsics[:, 0, 0].tolist() == pytest.approx([views[0].matrix[0, 0], 321.0])


def test_depth_of_transforms_has_the_files_unit(tmp_path):
    views = make_views(2)
    make.write_transforms(tmp_path, views)
    values = json.loads((tmp_path / "transforms.json").read_text())
    for k, frame in enumerate(values["frames"][::-1]):
        make.save(tmp_path / f"depth/{k}.png", np.rint(views[k].depth * 5000).astype(np.uint16))
        frame["depth_file_path"] = f"depth/{k}.png"
    (tmp_path / "transforms.json").write_text(json.dumps({**values, "depth_unit_scale_factor": 1 / 5000}))
    check_views(open_posed(tmp_path)[0], views)


@pytest.mark.parametrize(("folder", "other"), [("depth", "depths"), ("images", "color")])
def test_folders_of_nerfstudio_may_be_named_like_those_of_other_layouts(tmp_path, folder, other):
    views = make_views(2)
    make.write_transforms(tmp_path, views)
    (tmp_path / folder).rename(tmp_path / other)
    path = tmp_path / "transforms.json"
    path.write_text(path.read_text().replace(f"{folder}/", f"{other}/"))
    scene = open_posed(tmp_path)[0]
    assert scene.has_depth
    check_views(scene, views)


def test_scannet_with_a_transforms_of_instant_ngps_script_stays_metric(tmp_path):
    make.write_scannet(tmp_path, make_views(2))
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": []}))
    assert open_posed(tmp_path)[0].metric


def test_depth_as_exr_is_refused_by_name(tmp_path):
    make.write_transforms(tmp_path, make_views(2))
    text = (tmp_path / "transforms.json").read_text().replace(".npy", ".exr")
    (tmp_path / "transforms.json").write_text(text)
    for path in (tmp_path / "depth").iterdir():
        path.rename(path.with_suffix(".exr"))
    with pytest.raises(InputError, match=r"EXR is not read; convert it to float32 \.npy"):
        open_posed(tmp_path)


def test_whether_frames_follow_each_other_is_seen_from_their_places():
    poses = [view.pose for view in make_views(12, 8, 8)]
    assert follow_each_other(poses)
    order = np.random.default_rng(0).permutation(12)
    assert not follow_each_other([poses[k] for k in order])


def test_a_binary_model_of_colmap_is_read_like_its_text(tmp_path):
    views = make_views()
    make.write_megadepth(tmp_path, views)
    (fx, _, cx), (_, fy, cy) = views[0].matrix[:2].tolist()
    cameras = struct.pack("<QiiQQ4d", 1, 1, 1, 128, 96, fx, fy, cx + 0.5, cy + 0.5)
    images = struct.pack("<Q", len(views))
    for k, view in enumerate(views):
        points = struct.pack("<ddQ", 1.0, 2.0, 7) * k
        images += struct.pack("<i7di", k + 1, *make.camera_from_world_row(view), 1) + f"{k}.png".encode() + b"\0"
        images += struct.pack("<Q", k) + points
    for name, data in (("cameras", cameras), ("images", images)):
        (tmp_path / f"sparse/{name}.txt").unlink()
        (tmp_path / f"sparse/{name}.bin").write_bytes(data)
    check_views(open_posed(tmp_path / "dense0")[0], views)


def test_lenses_of_colmap(tmp_path):
    views = make_views(2)
    make.write_megadepth(tmp_path, views)
    (tmp_path / "sparse/cameras.txt").write_text("1 SIMPLE_RADIAL 128 96 115.2 64 48 0.1\n")
    camera = open_posed(tmp_path)[0].read.cameras[0]
    assert camera.matrix.tolist() == [[115.2, 0, 63.5], [0, 115.2, 47.5], [0, 0, 1]]
    assert camera.distortion.tolist() == [0.1, 0, 0, 0]


def test_photographs_with_a_model_need_no_depth(tmp_path):
    views = make_views()
    make.write_megadepth(tmp_path, views)
    (tmp_path / "dense0/imgs").rename(tmp_path / "images")
    scene = open_posed(tmp_path, "colmap")[0]
    check_views(scene, views)
    assert not scene.has_depth


def test_megadepth_without_a_model_says_where_it_was_looked_for(tmp_path):
    make.write_megadepth(tmp_path, make_views(2))
    (tmp_path / "sparse/images.txt").unlink()
    (tmp_path / "dense0/0000.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"no COLMAP model .*npz files are not read: they hold pickled objects"):
        open_posed(tmp_path)


def test_a_pfm_is_stored_from_the_bottom(tmp_path):
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n3 2\n1.0\n" + np.arange(6, dtype=">f4").tobytes())
    assert read_pfm(path).tolist() == [[3, 4, 5], [0, 1, 2]]
    path.write_bytes(b"Pf\n3 2\n-1.0\n" + np.arange(5, dtype="<f4").tobytes())
    with pytest.raises(InputError, match="20 bytes of numbers, expected 24"):
        read_pfm(path)
    path.write_bytes(b"P6\n3 2\n255\n")
    with pytest.raises(InputError, match="is no"):
        read_pfm(path)


def test_seven_scenes_without_intrinsics_has_those_of_its_depth_camera(tmp_path, caplog):
    from kp_training.data.layouts.rgbd import SEVEN_SCENES, _warn_of_registration

    _warn_of_registration.cache_clear()
    views = make_views(2, 480, 640, SEVEN_SCENES.matrix)
    make.write_seven_scenes(tmp_path, views)
    (tmp_path / "intrinsics.yaml").unlink()
    check_views(open_posed(tmp_path)[0], views)
    assert "not registered to its colour" in caplog.text


def test_a_folder_of_scenes_gives_each_and_leaves_out_what_is_broken(tmp_path, caplog):
    make.write_ours(tmp_path / "a", make_views(2))
    make.write_scannet(tmp_path / "scans/b", make_views(3))
    make.write_ours(tmp_path / "c", make_views(2))
    (tmp_path / "c/poses.txt").unlink()
    scenes = open_posed(tmp_path)
    assert [(scene.name, len(scene)) for scene in scenes] == [("a", 2), ("scans/b", 3)]
    assert "left out a scene" in caplog.text
    assert "poses.txt" in caplog.text
    assert [scene.name for scene in open_posed(tmp_path, "scannet")] == ["scans/b"]


def test_each_image_of_ours_may_have_intrinsics_of_its_own(tmp_path):
    make.write_ours(tmp_path, make_views(2))
    (tmp_path / "intrinsics.txt").write_text("# fx fy cx cy\n100 110 60 40\n200 210 61 41\n")
    scene = open_posed(tmp_path)[0]
    assert scene.intrinsics[1].tolist() == [[200, 0, 61], [0, 210, 41], [0, 0, 1]]
    (tmp_path / "intrinsics.txt").write_text("100 110 60 40\n")
    with pytest.raises(InputError, match="1 rows for 2 images"):
        open_posed(tmp_path)


def test_ray_depth_of_ours_becomes_depth_along_z(tmp_path):
    views = make_views(2)
    make.write_ours(tmp_path, views)
    values = yaml.safe_load((tmp_path / "intrinsics.yaml").read_text())
    (tmp_path / "intrinsics.yaml").write_text(yaml.safe_dump({**values, "depth_type": "ray"}))
    frame = open_posed(tmp_path)[0][0]
    (fx, _, cx), (_, fy, cy) = views[0].matrix[:2]
    expected = views[0].depth[90, 120] / np.linalg.norm([(120 - cx) / fx, (90 - cy) / fy, 1])
    assert frame.depth[90, 120] == pytest.approx(expected, abs=1e-3)


def test_what_is_kept_on_disk_is_keyed_by_the_files(tmp_path):
    make.write_ours(tmp_path, make_views(2))
    before = open_posed(tmp_path)[0].identity
    assert open_posed(tmp_path)[0].identity == before
    make.save(tmp_path / "rgb/000001.png", np.zeros((96, 128, 3), np.uint8))
    assert open_posed(tmp_path)[0].identity != before


def test_each_ros1_bag_of_a_folder_is_a_scene(tmp_path):
    for name in ("a.bag", "b.bag"):
        (tmp_path / name).write_bytes(b"#ROSBAG V2.0")
    with pytest.raises(InputError, match=r"not one of 2 scenes can be used; the first: .*a\.bag"):
        open_posed(tmp_path)


def test_another_camera_of_tums_layout_comes_with_intrinsics(tmp_path):
    views = make_views()
    make.write_tum_rgbd(tmp_path / "desk", views)
    with pytest.raises(InputError, match=r"put intrinsics\.yaml into the folder"):
        open_posed(tmp_path / "desk")
    make.write_intrinsics(tmp_path / "desk/intrinsics.yaml", views[0])
    check_views(open_posed(tmp_path / "desk")[0], views)


def test_poses_between_two_known_ones():
    second = np.eye(4)
    second[:3, :3] = cv2.Rodrigues(np.array([0, 0, 1.0]))[0]
    second[:3, 3] = 4, 0, 0
    stamps = np.array([0, LONGEST_GAP, 3 * LONGEST_GAP])
    known = Trajectory(stamps, np.stack([np.eye(4), second, second]))
    quarter, end, after, gap, late = poses_at(known, np.array([
        LONGEST_GAP // 4, LONGEST_GAP, LONGEST_GAP + REACH // 2, 2 * LONGEST_GAP, 3 * LONGEST_GAP + 2 * REACH]))
    assert np.allclose(quarter[:3, 3], (1, 0, 0))
    assert np.allclose(quarter[:3, :3], cv2.Rodrigues(np.array([0, 0, 0.25]))[0])
    assert np.allclose(end, second)
    assert np.allclose(after, second)
    assert gap is None
    assert late is None


def write_recording(path: Path, poses_from: float, count: int = 4, start: int = 10, storage: str = "sqlite3") -> None:
    """start: tenths of a second of the first of `count` frames; poses_from: seconds that poses are later."""
    from kp_frontend.replay.bag_writer import BagWriter

    views = make_views(count)
    with BagWriter(path, CameraModel(128, 96, views[0].matrix), storage=storage) as bag:
        for k, view in enumerate(views):
            stamp = (start + k) * 10**8
            bag.write(stamp, view.image, view.depth)
            bag.write_pose(stamp + round(poses_from * 1e9), view.pose)


def test_frames_of_a_bag_that_poses_do_not_cover_are_left_out(tmp_path, caplog):
    write_recording(tmp_path / "bag", 0.2)
    scene = open_posed(tmp_path / "bag")[0]
    assert len(scene) == 2
    assert np.allclose(scene.poses[0], np.eye(4))  # what was recorded 0.2 s late
    assert "left out 2 of 4 frames, which no pose covers" in caplog.text


def test_a_bag_whose_poses_are_of_another_time_says_both_spans(tmp_path):
    write_recording(tmp_path / "bag", 5.0)
    with pytest.raises(InputError, match=r"images from 1\.000 to 1\.300 s, poses from 6\.000 to 6\.300 s"):
        open_posed(tmp_path / "bag")


def test_a_bag_without_calibration_is_one_error_that_says_so(tmp_path, caplog):
    from kp_frontend.replay.bag_writer import BagWriter

    view = make_views(1)[0]
    with BagWriter(tmp_path / "bag", CameraModel(128, 96, np.eye(3))) as bag:
        bag.write(10**9, view.image, view.depth)
        bag.write_pose(10**9, view.pose)
    whole = BagSequence(tmp_path / "bag")
    whole.camera, whole.warnings = None, ["camera_info on /info has K = 0: features are measured, but no trajectory"]
    with whole, pytest.raises(InputError, match=r"has K = 0; record camera_info .* intrinsics\.yaml$"):
        _as_scene(whole, "bag")
    assert caplog.text == ""


def write_odd_recording(path: Path, images: list[int], depths: list[int], lens: float = 0.0) -> None:
    """Frames of 128×96, of which each image and depth map is made so many times smaller; camera_info is not."""
    from kp_frontend.replay.bag_writer import BagWriter

    views = make_views(len(images))
    with BagWriter(path, CameraModel(128, 96, views[0].matrix, np.array([lens, 0, 0, 0, 0]))) as bag:
        for k, view in enumerate(views):
            stamp = (10 + k) * 10**8
            bag.write_pose(stamp, view.pose)
            bag._write_info("/camera/camera_info", stamp, 0.0)
            bag._write_image("/camera/image_raw", stamp, view.image[::images[k], ::images[k]])
            bag._write_depth("/camera/depth/image_raw", stamp, view.depth[::depths[k], ::depths[k]])


@pytest.mark.parametrize("lens", [0.0, -0.02])
@pytest.mark.parametrize(("images", "depths", "message"), [
    ([2, 2], [2, 2], r"not one of 2 frames .* image is 64×48 but camera_info says 128×96; record the calibration"),
    ([1, 1], [2, 2], r"not one of 2 frames .* depth is 64×48 but camera_info says 128×96; record depth registered"),
])
def test_a_bag_of_another_size_than_its_calibration_is_refused(tmp_path, lens, images, depths, message):
    write_odd_recording(tmp_path / "bag", images, depths, lens)
    with pytest.raises(InputError, match=message):
        open_posed(tmp_path / "bag")


def test_single_frames_of_a_bag_of_another_size_are_left_out(tmp_path, caplog):
    write_odd_recording(tmp_path / "bag", [1, 2, 1], [1, 1, 1])
    scene = open_posed(tmp_path / "bag")[0]
    check_views(scene, make_views(3)[::2])
    assert "left out 1 frames that cannot be read, the first: image is 64×48" in caplog.text


def add_topics(path: Path, views: list[View], topics: dict[str, str], filled: bool) -> None:
    """A bag of `views` with more topics, by their types, each with a picture of its own where `filled`."""
    from kp_frontend.replay.bag_writer import BagWriter

    with BagWriter(path, CameraModel(128, 96, views[0].matrix)) as bag:
        for topic, kind in topics.items():
            bag._connections[topic] = bag._writer.add_connection(topic, kind, typestore=bag._store)
        for k, view in enumerate(views):
            bag.write((10 + k) * 10**8, view.image, view.depth, world_from_camera=view.pose)
            for topic in topics if filled else ():
                bag._write_image(topic, (10 + k) * 10**8, view.image)


def test_a_bag_of_all_topics_opens(tmp_path, caplog):
    compressed = "sensor_msgs/msg/CompressedImage"
    views = make_views(3)
    add_topics(tmp_path / "bag", views, {
        "/camera/image_raw/compressed": compressed, "/camera/image_raw/compressedDepth": compressed,
        "/camera/depth/image_raw/compressedDepth": compressed, "/camera/infra1/image_raw": "sensor_msgs/msg/Image",
        "/goal_pose": "geometry_msgs/msg/PoseStamped",
    }, filled=False)
    scene = open_posed(tmp_path / "bag")[0]
    check_views(scene, views)
    assert scene.has_depth
    assert caplog.text == ""


def test_where_a_bag_has_two_images_the_advice_can_be_followed(tmp_path, monkeypatch):
    from rosbags.convert.cli import main as rosbags_convert

    views = make_views(3)
    add_topics(tmp_path / "bag", views, {"/infra1/image_raw": "sensor_msgs/msg/Image"}, filled=True)
    with pytest.raises(InputError, match=r"could be the image: /camera/image_raw, /infra1/image_raw; leave") as caught:
        open_posed(tmp_path / "bag")
    words = str(caught.value).partition("`")[2].partition(" TOPIC …`")[0].replace("COPY", str(tmp_path / "copy"))
    monkeypatch.setattr("sys.argv", [*words.split(), "/infra1/image_raw"])
    with pytest.raises(SystemExit, match=r"^0$"):
        rosbags_convert()
    check_views(open_posed(tmp_path / "copy")[0], views)


@pytest.mark.parametrize(("names", "frames"), [
    (("a", "b"), {"a.mcap": 4, "b.mcap": 3}), (("run_0", "run_1"), {"all": 7}), (("lone",), {"all": 4}),
])
def test_files_of_bags_in_a_folder(tmp_path, names, frames):
    (tmp_path / "all").mkdir()
    for k, name in enumerate(names):
        write_recording(tmp_path / name, 0.0, 4 - k, start=10 + 10 * k, storage="mcap")
        (tmp_path / name / f"{name}.mcap").rename(tmp_path / "all" / f"{name}.mcap")
    assert {scene.name: len(scene) for scene in open_posed(tmp_path / "all")} == frames


def test_a_bag_without_calibration_and_without_a_truth_by_name_says_what_can_be_done(tmp_path):
    from kp_frontend.replay.bag_writer import BagWriter

    class Uncalibrated(BagWriter):
        def _write(self, topic, stamp, message) -> None:
            if "camera_info" not in topic:
                super()._write(topic.replace("ground_truth", "pose"), stamp, message)

    view = make_views(1)[0]
    with Uncalibrated(tmp_path / "bag", CameraModel(128, 96, view.matrix)) as bag:
        bag.write(10**9, view.image, world_from_camera=view.pose)
    with pytest.raises(InputError, match=r"no camera_info for /camera/image_raw; record .*intrinsics\.yaml$"):
        open_posed(tmp_path / "bag")


def test_a_bag_is_read_once(tmp_path, capsys):
    write_recording(tmp_path / "bag", 0.0)
    first = open_posed(tmp_path / "bag")[0]
    again = open_posed(tmp_path / "bag")[0]
    assert capsys.readouterr().out.count("are read from the bag") == 1
    assert first.identity == again.identity
    assert first.read.stamps == (10**9, 11 * 10**8, 12 * 10**8, 13 * 10**8)


def test_real_scenes_open():
    if not SHARED.is_dir():
        pytest.skip("the development data is not here")
    kitchen, fox = (open_posed(SHARED / name)[0] for name in ("rgbd/redkitchen_a", "multiview/fox"))
    assert (len(kitchen), len(fox)) == (150, 50)
    assert reprojection_error(kitchen, 0, 10) < 0.01
    assert fox[0].image.shape == (960, 540, 3)
    assert not fox.read.cameras[0].undistorted
