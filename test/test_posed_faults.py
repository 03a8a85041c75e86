"""Posed data with something wrong: what cannot be used is left out and counted, or refused with what was seen."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import posed_layouts as make
import pytest
import yaml
from posed_layouts import make_views
from posed_scenes import plane_scene
from test_posed_layouts import check_views

from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import read_depth, read_image
from kp_frontend.resources import cache_folder
from kp_training.data import open_images, open_scenes, training_scenes
from kp_training.data.layouts import open_posed
from kp_training.data.scene_writer import write_scene


def rewrite(path: Path, change) -> None:
    rows = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(" ".join(map(str, change(k, row))) + "\n" for k, row in enumerate(rows)))


def test_rows_without_a_pose_are_left_out_and_counted(tmp_path, caplog):
    views = make_views(4)
    make.write_ours(tmp_path, views)
    bad = {1: ["nan"] * 7, 2: ["0"] * 7}
    rewrite(tmp_path / "poses.txt", lambda k, row: row[:1] + bad.get(k, row[1:]))
    check_views(open_posed(tmp_path)[0], [views[0], views[3]])
    assert "2 without pose, of 4 frames" in caplog.text


def test_a_frame_that_cannot_be_read_raises_when_it_is_read(tmp_path):
    make.write_ours(tmp_path, make_views(5))
    (tmp_path / "rgb/000001.png").write_bytes(b"no image")
    make.save(tmp_path / "depth/000003.png", np.ones((40, 50), np.uint16))
    scene = open_posed(tmp_path)[0]
    assert scene[0].image.shape == (96, 128, 3)
    with pytest.raises(InputError, match=r"000001\.png is missing, cut short or no readable image"):
        scene[1]
    with pytest.raises(InputError, match=r"50×40, unlike its image 000003\.png of 128×96"):
        scene[3]


def test_a_frame_that_was_cut_short_raises_without_a_word_of_libraries(tmp_path, capfd):
    make.write_ours(tmp_path, make_views(5))
    image, depth = tmp_path / "rgb/000001.png", tmp_path / "depth/000003.png"
    jpeg = tmp_path / "rgb/000003.jpg"
    cv2.imwrite(str(jpeg), cv2.imread(str(image)))
    for path in (image, depth, jpeg):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read, path in ((read_image, image), (read_depth, depth), (read_image, jpeg)):
        with pytest.raises(InputError, match="cut short"):
            read(path)
    assert capfd.readouterr().err == ""


def test_a_cache_that_cannot_be_made_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path / "file/below"))
    with pytest.raises(InputError, match=r"cannot make the cache folder .*\(Not a directory\); set KP_FRONTEND_CACHE"):
        cache_folder("labels")


def test_frames_that_cannot_be_read_give_place_to_the_next_photograph(tmp_path, caplog):
    make.write_ours(tmp_path, make_views(24))
    images = open_images([f"posed:{tmp_path}"])
    expected = images[1]
    first = tmp_path / images.images.scenes[0].names[0]
    first.write_bytes(first.read_bytes()[:90])
    for _ in range(2):
        np.testing.assert_array_equal(images[0], expected)
    assert caplog.text.count("the next image takes its place") == 1
    for path in (tmp_path / "rgb").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"not one of \d+ images can be read"):
        images[0]


def test_frames_that_validation_sees_are_kept_from_training(tmp_path):
    """Where there are photographs, they are what is held out, and all frames are learned from."""
    write_scene(plane_scene(40, 32, 48, step=0.01), tmp_path / "plane")
    posed = f"posed:{tmp_path / 'plane'}"
    [scene] = open_scenes([posed], 0, 0)
    [learned] = training_scenes([posed], 0, 0)
    held_out, used = open_images([posed], held_out=True), open_images([posed])
    assert 0 < len(held_out) < 20
    assert len(learned) == len(used) == 40 - len(held_out)
    assert learned.identity != scene.identity
    for k in range(len(learned)):
        assert np.array_equal(learned[k].image, used[k])
        assert not any(np.array_equal(learned[k].image, held_out[number]) for number in range(len(held_out)))
    assert training_scenes([posed, "procedural:2"], 0, 0)[0].names == scene.names


def test_photographs_alone_are_no_scene(tmp_path):
    make.save(tmp_path / "a.png", np.zeros((70, 70, 3), np.uint8))
    with pytest.raises(InputError, match="holds images, but no poses with them; as photographs they are photos:"):
        open_posed(tmp_path)


def numbers_of(folder: Path, convert) -> None:
    """Depth of a scene of ours as .npy of `convert` (metres → numbers)."""
    for path in (folder / "depth").iterdir():
        np.save(path.with_suffix(".npy"), convert(cv2.imread(str(path), -1).astype(np.float32) / 1000))
        path.unlink()


def test_a_missing_depth_map_leaves_its_frame_out(tmp_path, caplog):
    views = make_views(3)
    make.write_ours(tmp_path, views)
    (tmp_path / "depth/000001.png").unlink()
    check_views(open_posed(tmp_path)[0], [views[0], views[2]])
    assert "1 without depth, of 3 frames" in caplog.text


@pytest.mark.parametrize(("convert", "message"), [
    (lambda depth: depth * 1000, r"median depth is .* m .*millimetres taken for metres\?"),
    (lambda depth: depth * np.nan, "0 or not finite everywhere in 3 frames looked at"),
    (lambda depth: depth * 0, "0 or not finite everywhere"),
    (lambda depth: depth[:50], "128×50, unlike its image 000000.png of 128×96"),
    (lambda depth: depth[None, None], r"shape \(1, 1, 96, 128\)|no depth map of one channel"),
])
def test_depth_that_cannot_be_is_refused_with_what_was_seen(tmp_path, convert, message):
    make.write_ours(tmp_path, make_views(3))
    numbers_of(tmp_path, convert)
    with pytest.raises(InputError, match=message):
        open_posed(tmp_path)


def test_depth_of_one_channel_may_say_so(tmp_path):
    views = make_views(3)
    make.write_ours(tmp_path, views)
    numbers_of(tmp_path, lambda depth: depth[..., None])
    check_views(open_posed(tmp_path)[0], views)


def saved(save, *arrays) -> bytes:
    file = io.BytesIO()
    save(file, *arrays)
    return file.getvalue()


WHOLE = saved(np.save, np.ones((96, 128), np.float32))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is no readable .npy file: EOF"),
    (WHOLE[:50], "is no readable .npy file: EOF"),
    (WHOLE[:-9], "is no readable .npy file: Failed to read all data"),
    (WHOLE.replace(b"}", b" "), "is no readable .npy file"),
    (WHOLE.replace(b"(96, 128)", b"(1" + 14 * b"0" + b",)").replace(9 * b" ", b"", 1),
     "is no readable .npy file: Unable to allocate"),
    (saved(np.savez, np.ones((96, 128))), "is no readable .npy file: the magic string is not correct"),
    (saved(np.save, np.full((96, 128), None)), "is no readable .npy file: Object arrays cannot be loaded"),
    (saved(np.save, np.full((96, 128), "1.5")), "holds <U3, expected numbers"),
], ids=("empty", "half a header", "cut short", "no header", "too large", "archive", "objects", "words"))
def test_a_damaged_npy_raises_when_it_is_read(tmp_path, content, message):
    make.write_ours(tmp_path, make_views(5))
    numbers_of(tmp_path, lambda depth: depth)
    (tmp_path / "depth/000001.npy").write_bytes(content)
    scene = open_posed(tmp_path)[0]
    with pytest.raises(InputError, match=rf"000001\.npy {message}"):
        scene[1]


def test_a_damaged_pose_of_the_nerf_layout_is_refused_by_name(tmp_path):
    make.write_nerf(tmp_path, make_views(2, 480, 640))
    path = tmp_path / "NeRF/camera_transforms/training/castle10.npy"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"castle10\.npy is no readable \.npy file"):
        open_posed(tmp_path)
    np.save(path, np.ones((1, 4)))
    with pytest.raises(InputError, match=r"castle10\.npy is no 4×4 numbers: \[\[1\.0, 1\.0"):
        open_posed(tmp_path)


@pytest.mark.parametrize(("key", "value"), [
    ("cx", None), ("fl_x", "abc"), ("w", "wide"), ("k1", None), ("cy", float("nan")),
    ("depth_unit_scale_factor", None),
])
def test_numbers_of_transforms_that_are_none_are_named(tmp_path, key, value):
    make.write_transforms(tmp_path, make_views(2))
    values = json.loads((tmp_path / "transforms.json").read_text())
    (tmp_path / "transforms.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(InputError, match=rf"transforms\.json: {key} is {value!r}, expected a finite number"):
        open_posed(tmp_path)


def test_frames_of_transforms_without_image_are_left_out_and_counted(tmp_path, caplog):
    views = make_views(4)
    make.write_transforms(tmp_path, views)
    values = json.loads((tmp_path / "transforms.json").read_text())
    for k, frame in enumerate(values["frames"]):
        frame["k3"] = 1e-12 * k  # a camera of its own
    (tmp_path / "transforms.json").write_text(json.dumps(values))
    (tmp_path / "images/2.png").unlink()
    check_views(open_posed(tmp_path)[0], [views[0], views[1], views[3]])
    assert "left out 1 without image file, of 4 frames" in caplog.text


def test_a_header_of_euroc_without_its_mark_is_said(tmp_path):
    make.write_euroc(tmp_path, make_views(2))
    path = tmp_path / "mav0/cam0/data.csv"
    path.write_text(path.read_text().replace("#t,file", "timestamp,filename"))
    with pytest.raises(InputError, match=r"cam0/data\.csv: .*'timestamp'.* a header must begin with #"):
        open_posed(tmp_path)


@pytest.mark.parametrize("stamp", ["inf", "nan", "1e30", "99999999999", "noon"])
def test_a_stamp_that_is_no_time_is_named(tmp_path, stamp):
    make.write_ours(tmp_path, make_views(2))
    rewrite(tmp_path / "poses.txt", lambda k, row: [stamp if k else row[0], *row[1:]])
    with pytest.raises(InputError, match=rf"poses\.txt: '{stamp}' is no time; the first column must be a stamp"):
        open_posed(tmp_path)


def test_millimetres_are_fine_where_no_unit_is_known(tmp_path):
    make.write_ours(tmp_path, make_views(3))
    numbers_of(tmp_path, lambda depth: depth * 1000)
    values = yaml.safe_load((tmp_path / "intrinsics.yaml").read_text())
    (tmp_path / "intrinsics.yaml").write_text(yaml.safe_dump({**values, "unit": "scene"}))
    assert not open_posed(tmp_path)[0].metric


@pytest.mark.parametrize(("change", "message"), [
    (np.diag([-1.0, 1, 1]), "3 of 3 poses are no rotation.*determinant -1"),
    (np.diag([2.0, 2, 2]), "determinant 8, rows of length 2 2 2"),
])
def test_poses_that_are_no_rotations_are_refused_with_what_was_seen(tmp_path, change, message):
    make.write_transforms(tmp_path, make_views(3))
    values = json.loads((tmp_path / "transforms.json").read_text())
    for frame in values["frames"]:
        pose = np.array(frame["transform_matrix"])
        pose[:3, :3] = change @ pose[:3, :3]
        frame["transform_matrix"] = pose.tolist()
    (tmp_path / "transforms.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        open_posed(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    make.write_transforms(tmp_path / "t", make_views(2))
    values = json.loads((tmp_path / "t/transforms.json").read_text())
    (tmp_path / "t/transforms.json").write_text(json.dumps({"frames": values["frames"]}))
    with pytest.raises(InputError, match="no intrinsics: neither fl_x nor camera_angle_x"):
        open_posed(tmp_path / "t")
    make.write_scannet(tmp_path / "s", make_views(2))
    (tmp_path / "s/intrinsic/intrinsic_depth.txt").unlink()
    with pytest.raises(InputError, match="intrinsic_depth"):
        open_posed(tmp_path / "s")
    make.write_kitti(tmp_path / "k", make_views(2))
    (tmp_path / "k/poses.txt").unlink()
    with pytest.raises(InputError, match="no ground truth"):
        open_posed(tmp_path / "k")
    make.write_ours(tmp_path / "o", make_views(2))
    (tmp_path / "o/intrinsics.yaml").unlink()
    with pytest.raises(InputError, match=r"intrinsics\.yaml"):
        open_posed(tmp_path / "o")


def test_what_is_no_scene_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no posed scene that we know; looked for .*scannet: color beside pose"):
        open_posed(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        open_posed(tmp_path / "nowhere")
    with pytest.raises(InputError, match="choose one of: bag, blended_mvs"):
        open_posed(tmp_path, "colmapp")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InputError, match="unpack it first"):
        open_posed(tmp_path / "a.zip")
    (tmp_path / "color").mkdir()
    (tmp_path / "color/0.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="has no pose"):
        open_posed(tmp_path, "scannet")


def test_scannets_lost_frames_are_left_out_and_counted(tmp_path, caplog):
    views = make_views(4)
    make.write_scannet(tmp_path, views)
    (tmp_path / "pose/9.txt").write_text("-inf -inf -inf -inf\n" * 4)
    (tmp_path / "pose/10.txt").unlink()
    check_views(open_posed(tmp_path)[0], [views[0], views[3]])
    assert "left out 1 with a pose of nan or infinity, 1 without pose, of 4 frames" in caplog.text
