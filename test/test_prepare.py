"""``prepare``: what it writes is what it was given, in our layout; it never overwrites, and can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import posed_layouts as make
import pytest
import yaml
from posed_layouts import make_views, matrix_of
from posed_scenes import plane_scene
from test_posed_layouts import LENS, check_views, reprojection_error

from kp_frontend.errors import InputError
from kp_frontend.replay import make_bag
from kp_training.__main__ import main as kp_training
from kp_training.cli.prepare import main
from kp_training.data import scene_writer
from kp_training.data.layouts import open_posed
from kp_training.data.scene_writer import write_scene


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path_factory.mktemp("cache")))


def intrinsics(folder: Path) -> dict:
    return yaml.safe_load((folder / "intrinsics.yaml").read_text())


def test_a_metric_scene_keeps_its_views_and_stamps(tmp_path, capsys):
    views = make_views()
    make.write_scannet(tmp_path / "scan", views)
    assert main([str(tmp_path / "scan"), "--output", str(tmp_path / "out")]) == 0
    scene = open_posed(tmp_path / "out", "scene")[0]
    check_views(scene, views)
    assert scene.metric
    assert scene.ordered
    assert not (tmp_path / "out/intrinsics.txt").exists()
    assert "3 frames, depth in millimetres, metric" in capsys.readouterr().out
    make.write_ours(tmp_path / "ours", views)
    main([str(tmp_path / "ours"), "--output", str(tmp_path / "again"), "--every", "2"])
    again = open_posed(tmp_path / "again")[0]
    check_views(again, views[::2])
    assert again.read.stamps == (0, 200_000_000)


def test_pictures_that_need_no_change_are_copied(tmp_path):
    make.write_ours(tmp_path / "ours", make_views(2))
    make.save(tmp_path / "ours/rgb/000001.jpg", make_views(2)[1].image)
    (tmp_path / "ours/rgb/000001.png").unlink()
    main([str(tmp_path / "ours"), "--output", str(tmp_path / "out")])
    for name in ("000000.png", "000001.jpg"):
        assert (tmp_path / "out/rgb" / name).read_bytes() == (tmp_path / "ours/rgb" / name).read_bytes()
    main([str(tmp_path / "ours"), "--output", str(tmp_path / "small"), "--size", "64x48"])
    assert sorted(path.name for path in (tmp_path / "small/rgb").iterdir()) == ["000000.png", "000001.png"]


def test_a_scene_without_metric_scale_keeps_its_unit(tmp_path):
    views = make_views()
    make.write_blended_mvs(tmp_path / "block", views)
    main([str(tmp_path / "block"), "--output", str(tmp_path / "out")])
    scene = open_posed(tmp_path / "out")[0]
    assert (scene.metric, scene.ordered) == (False, False)
    assert intrinsics(tmp_path / "out")["unit"] == "scene"
    assert np.array_equal(scene[1].depth, views[1].depth)


def test_a_lens_is_gone_from_what_is_written(tmp_path):
    views = make_views()
    make.write_transforms(tmp_path / "lens", views, LENS)
    before = open_posed(tmp_path / "lens")[0]
    main([str(tmp_path / "lens"), "--output", str(tmp_path / "out")])
    after = open_posed(tmp_path / "out")[0]
    assert after.read.cameras[0].undistorted
    assert np.array_equal(after[2].image, before[2].image)
    assert np.array_equal(after[2].depth, before[2].depth)


def test_frames_of_several_cameras_keep_intrinsics_of_their_own(tmp_path):
    views = [*make_views(2), *make_views(4, 72, 144, matrix_of(150, 150, 70, 30))[2:]]
    make.write_megadepth(tmp_path / "0000", views)
    cameras = "1 PINHOLE 128 96 115.2 117.76 61.94 51.38\n2 PINHOLE 144 72 150 150 70.5 30.5\n"
    (tmp_path / "0000/sparse/cameras.txt").write_text(cameras)
    path = tmp_path / "0000/sparse/images.txt"
    path.write_text(path.read_text().replace("1 2.png", "2 2.png").replace("1 3.png", "2 3.png"))
    main([str(tmp_path / "0000"), "--output", str(tmp_path / "out")])
    scene = open_posed(tmp_path / "out")[0]
    assert len((tmp_path / "out/intrinsics.txt").read_text().splitlines()) == 5
    assert {scene[k].image.shape for k in range(4)} == {(96, 128, 3)}
    assert scene.intrinsics[3] == pytest.approx(matrix_of(150 * 128 / 144, 200, 70.5 * 128 / 144 - 0.5,
                                                          30.5 * 96 / 72 - 0.5), abs=1e-5)
    assert reprojection_error(scene, 0, 3) < 0.01
    assert reprojection_error(scene, 3, 1) < 0.01


def test_resized_frames_are_still_right(tmp_path):
    make.write_ours(tmp_path / "ours", make_views())
    main([str(tmp_path / "ours"), "--output", str(tmp_path / "out"), "--size", "80x64"])
    scene = open_posed(tmp_path / "out")[0]
    assert scene[0].image.shape == (64, 80, 3)
    assert scene.intrinsics[0, 0, 2] == pytest.approx((0.48 * 128 + 0.5) * 80 / 128 - 0.5)
    assert reprojection_error(scene, 0, 2) < 0.01
    assert set(np.unique(scene[0].depth)) <= set(np.unique(open_posed(tmp_path / "ours")[0][0].depth))


def test_depth_beyond_sixteen_bits_is_written_as_floats(tmp_path):
    scene = plane_scene(3, 24, 32)
    depths = [scene[0].depth, scene[1].depth, scene[2].depth * 30]
    far = type(scene)(**{**vars(scene), "read": lambda index: (scene[index].image, depths[index])})
    write_scene(far, tmp_path / "out")
    assert sorted(path.suffix for path in (tmp_path / "out/depth").iterdir()) == [".npy"] * 3
    back = open_posed(tmp_path / "out")[0]
    assert np.allclose(back[0].depth, depths[0], atol=6e-4)
    assert np.array_equal(back[2].depth, depths[2])


def test_several_scenes_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        make.write_ours(tmp_path / "in" / name, make_views(2))
    command = [str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    write_numbers, calls = scene_writer._write_numbers, []

    def stop_at_the_second(scene, *rest):
        calls.append(scene.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_numbers(scene, *rest)

    monkeypatch.setattr(scene_writer, "_write_numbers", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "prepare.json"]
    left = tmp_path / "out/.b.partial1"  # of a process that was killed
    left.mkdir()
    assert main(command) == 0
    assert calls == ["a", "b", "b", "c"]
    assert not left.exists()
    assert "2 scenes written, 1 were there already" in capsys.readouterr().out
    assert [scene.name for scene in open_posed(tmp_path / "out")] == ["a", "b", "c"]
    with pytest.raises(InputError, match="with other options"):
        main([*command, "--every", "2"])


def test_scenes_keep_as_much_of_their_names_as_tells_them_apart(tmp_path):
    for name in ("x/a", "y/b"):
        make.write_ours(tmp_path / "in" / name, make_views(1, 24, 32))
    main([str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert [scene.name for scene in open_posed(tmp_path / "out")] == ["a", "b"]
    make.write_ours(tmp_path / "in/z/a", make_views(1, 24, 32))
    main([str(tmp_path / "in"), "--output", str(tmp_path / "all")])
    assert [scene.name for scene in open_posed(tmp_path / "all")] == ["x/a", "y/b", "z/a"]


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, monkeypatch):
    make.write_ours(tmp_path / "ours", make_views(2, 24, 32))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="is there already"):
        main([str(tmp_path / "ours"), "--output", str(tmp_path / "out")])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scene_writer, "write_tum", full)
    with pytest.raises(InputError, match="No space left on device"):
        main([str(tmp_path / "ours"), "--output", str(tmp_path / "new")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out"]


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_writer.cv2, "imwrite", lambda *_: False)
    with pytest.raises(InputError, match="cannot write"):
        write_scene(plane_scene(2, 24, 32), tmp_path / "out")


def test_frames_that_cannot_be_read_are_left_out_and_counted(tmp_path, caplog):
    views = make_views(5)
    make.write_ours(tmp_path / "ours", views)
    (tmp_path / "ours/rgb/000001.png").write_bytes(b"no image")
    main([str(tmp_path / "ours"), "--output", str(tmp_path / "out")])
    check_views(open_posed(tmp_path / "out")[0], [views[0], *views[2:]])
    assert "left out 1 frames that cannot be read" in caplog.text


def test_rooms_are_asked_for_at_the_size_given(tmp_path, monkeypatch):
    asked = []

    def rooms(specs, height, width):
        asked.append((specs, height, width))
        return [plane_scene(2, height, width)]

    monkeypatch.setattr("kp_training.data.open_scenes", rooms)
    main(["rooms:1", "--size", "64x48", "--output", str(tmp_path / "out")])
    assert asked == [(["rooms:1"], 48, 64)]
    assert open_posed(tmp_path / "out")[0][0].image.shape == (48, 64, 3)


def test_a_bag_is_made_of_what_was_prepared_and_prepared_again(tmp_path):
    views = make_views(4)
    make.write_seven_scenes(tmp_path / "seq-01", views)
    main([str(tmp_path / "seq-01"), "--output", str(tmp_path / "out")])
    assert make_bag.main([str(tmp_path / "out"), "--output", str(tmp_path / "bag")]) == 0
    main([str(tmp_path / "bag"), "--output", str(tmp_path / "again")])
    check_views(open_posed(tmp_path / "again")[0], views)


def test_a_bag_needs_metres_and_one_camera(tmp_path):
    write_scene(plane_scene(2, 24, 32, metric=False), tmp_path / "free")
    with pytest.raises(InputError, match="no metric scale"):
        make_bag.main([str(tmp_path / "free"), "--output", str(tmp_path / "bag")])
    write_scene(plane_scene(2, 24, 32), tmp_path / "own")
    (tmp_path / "own/intrinsics.txt").write_text("30 30 16 12\n31 30 16 12\n")
    with pytest.raises(InputError, match="calibration of its own"):
        make_bag.main([str(tmp_path / "own"), "--output", str(tmp_path / "bag")])


@pytest.mark.parametrize(("arguments", "message"), [
    (["{source}", "--size", "640"], "expected WIDTHxHEIGHT"),
    (["{source}", "--every", "0"], "--every is 0"),
    (["{source}", "--layout", "colmapp"], "unknown layout 'colmapp'; choose one of: bag"),
    (["{source}.zip"], "unpack it first"),
    (["{source}/nowhere"], "no folder"),
])
def test_what_cannot_be_prepared_is_said_in_one_line(tmp_path, capsys, arguments, message):
    make.write_ours(tmp_path / "ours", make_views(1, 24, 32))
    shutil.make_archive(str(tmp_path / "ours"), "zip", tmp_path / "ours")
    words = [word.format(source=tmp_path / "ours") for word in arguments]
    assert kp_training(["prepare", *words, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_record_of_a_folder_of_scenes_names_its_source(tmp_path):
    for name in ("a", "b"):
        make.write_ours(tmp_path / "in" / name, make_views(1, 24, 32))
    main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--size", "32x24"])
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert (record["source"], record["size"], sorted(record["scenes"])) == (str(tmp_path / "in"), "32x24", ["a", "b"])
