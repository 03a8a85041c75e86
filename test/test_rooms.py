"""Rendered scenes: depth, pose and picture must agree, whatever process drew them and however often it was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_training.data.procedural import ProceduralImages
from kp_training.data.rooms import materials, source
from kp_training.data.rooms.rendering import Lamp, Material, World, ball, look, rectangle, render, tube
from kp_training.data.rooms.room import CLEARANCE, make_room
from kp_training.data.rooms.source import RoomFrames, open_rooms, write_rooms
from kp_training.data.rooms.textures import Textures

IMAGES = ProceduralImages(3, (96, 128))


@pytest.fixture
def quick(monkeypatch):
    """Coarse textures, which are made sooner."""
    monkeypatch.setattr(materials, "SIDE", 128)


def camera(height: int = 48, width: int = 64, focal: float = 50.0) -> CameraModel:
    return CameraModel(width, height, np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]))


def plain(color=(200, 100, 50)) -> Textures:
    return Textures([np.full((64, 64, 3), color, np.uint8)])


def lit(surfaces, textures=None, lamps=(), ambient=(1.0, 1.0, 1.0)) -> World:
    return World(tuple(surfaces), textures or plain(), tuple(lamps), ambient)


def cast(surfaces, view: CameraModel, pose: np.ndarray) -> np.ndarray:
    """The slow reference: depth along z of the nearest hit, pixel by pixel and surface by surface, 0 = none."""
    depth = np.zeros((view.height, view.width))
    for y in range(view.height):
        for x in range(view.width):
            ray = pose[:3, :3] @ np.linalg.inv(view.matrix) @ [x, y, 1]
            hits = [t for surface in surfaces for t in roots(surface, pose[:3, 3], ray) if t > 0.05]
            depth[y, x] = min(hits, default=0)
    return depth


def roots(surface, eye, ray) -> list[float]:
    to = eye - surface.origin
    size, z = surface.size, surface.axes[2]
    if surface.kind in ("rectangle", "disc"):
        t = -(z @ to) / (z @ ray)
        u, v = (surface.axes[k] @ (to + t * ray) / size[k] for k in range(2))
        facing = surface.two_sided or z @ ray > 0
        inside = u * u + v * v <= 1 if surface.kind == "disc" else max(abs(u), abs(v)) <= 1
        return [t] if facing and inside else []
    along = np.zeros((3, 3)) if surface.kind == "ball" else np.outer(z, z)
    across, start = ray - along @ ray, to - along @ to
    found = np.roots([across @ across, 2 * across @ start, start @ start - size[0] ** 2])
    if np.iscomplexobj(found):
        return []
    t = float(found.min())
    return [t] if surface.kind == "ball" or abs(z @ (to + t * ray)) <= size[2] else []


def test_depth_is_that_of_a_ray_caster():
    material = Material(0)
    surfaces = [
        rectangle((-2, 4, 2), (4, 0.5, 0), (0, 0, -3), material),
        rectangle((0.3, 2.5, 0.2), (0.4, 0.2, 0), (0, 0, 0.3), material),  # seen from behind: not at all
        rectangle((-0.6, 2.2, 0.5), (0.5, 0, 0.1), (0, 0.4, 0), material, two_sided=True, kind="disc"),
        ball((0.4, 3, 0.1), 0.5, material), tube((-1, 3, -1), (0.4, 0.3, 2), 0.15, material),
        rectangle((-3, 5, -0.8), (6, 0, 0), (0, -6, 0), material),  # reaches behind the camera
    ]
    for pose in (look((0, 0, 0), (0, 3, 0), 0.0), look((0.5, -0.3, 0.4), (-0.2, 3, 0), 0.2)):
        _, depth = render(lit(surfaces), camera(), pose)
        expected = cast(surfaces, camera(), pose)
        same = np.abs(depth - expected) < 1e-4 * np.maximum(expected, 1)
        assert same.mean() > 0.998  # single pixels whose centre lies on an edge fall to either side
        assert len(np.unique(np.round(expected, 1))) > 20
        assert (expected == 0).any()


def test_a_camera_inside_a_ball_or_before_nothing_sees_nothing():
    image, depth = render(lit([ball((0, 0, 0), 2.0, Material(0))]), camera(), look((0, 0, 0), (0, 3, 0), 0.0))
    assert not depth.any()
    assert not image.any()


def test_edges_are_blended_and_depth_is_not():
    near, far = Material(0), Material(1)
    textures = Textures([np.full((64, 64, 3), value, np.uint8) for value in (255, 0)])
    wall, pole = rectangle((-9, 5, 9), (18, 0, 0), (0, 0, -18), far), tube((0, 2, -3), (0.4, 0, 6), 0.1, near)
    world = lit([wall, pole], textures)
    image, depth = render(world, camera(), look((0, 0, 0), (0, 3, 0), 0.0))
    between = (image[..., 0] > 20) & (image[..., 0] < 200)
    assert between.sum() > 40
    assert ((np.abs(depth - 5) < 1e-4) | (depth < 2.1)).all()


def test_textures_are_where_they_should_be():
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, :64, 0], picture[:32, :, 1], picture[..., 2] = 200, 100, 50
    material = Material(0, (32, 32), glow=1.0)
    world = lit([rectangle((-2, 4, 1), (4, 0, 0), (0, 0, -2), material)], Textures([picture]))
    image, _ = render(world, camera(), look((0, 0, 0), (0, 3, 0), 0.0))
    assert np.allclose(image[15, 10], (200, 100, 50), atol=1)
    assert np.allclose(image[30, 50], (0, 0, 50), atol=1)
    assert np.allclose(image[30, 10], (200, 0, 50), atol=1)
    assert not image[5].any()


def test_texture_lookup_against_loops():
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (64, 128, 3)).astype(np.uint8), rng.integers(0, 256, (128, 64, 3)).astype(np.uint8)]
    textures = Textures(images)
    which, places = rng.integers(0, 2, 50), rng.uniform(-200, 400, (50, 2)).astype(np.float32)
    got = textures.sample(which, *places.T, np.zeros(50, np.float32))
    for number, (x, y), color in zip(which, places, got):
        image = np.vstack([np.hstack([images[number], images[number][:, ::-1]])] * 2)
        image[len(image) // 2 :] = image[: len(image) // 2][::-1]
        x, y = x - 0.5, y - 0.5
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        expected = np.zeros(3)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = abs(1 - j - (y - y0)) * abs(1 - i - (x - x0))
            expected += weight * image[(y0 + j) % len(image), (x0 + i) % image.shape[1]]
        assert np.abs(expected - color).max() < 10  # OpenCV rounds places to 1/32 of a texel
    coarse = textures.sample(which, *places.T, np.full(50, 6, np.float32))
    assert np.abs(coarse - [images[number].mean((0, 1)) for number in which]).max() < 25


def test_lamps_follow_lambert():
    wall = rectangle((-9, 4, 9), (18, 0, 0), (0, 0, -18), Material(0))
    lamp = Lamp((0, 2, 0), (0.5, 1.0, 0.25), 2.0)
    world = lit([wall], plain((100, 100, 100)), [lamp], (0.0, 0.0, 0.0))
    image, _ = render(world, camera(49, 65), look((0, 0, 0), (0, 3, 0), 0.0))
    assert np.allclose(image[24, 32], np.array([50, 100, 25]) / 2, atol=0.5)  # straight on, at its reach
    offset = (62 - 32) / 50 * 4
    gain = 2 / np.hypot(2, offset) / (1 + (4 + offset**2) / 4)
    assert image[24, 62, 1] == pytest.approx(100 * gain, abs=0.5)


@pytest.mark.parametrize("number", [0, 2])
def test_frames_agree_with_each_other(number):
    room = make_room(0, number, IMAGES)
    matte = [replace(surface, material=replace(surface.material, gloss=0.0)) for surface in room.world.surfaces]
    world = replace(room.world, surfaces=tuple(matte))
    view, poses = room.camera(120, 160), room.poses(20)[[0, 10]]
    (image, depth), (other, other_depth) = (render(world, view, pose) for pose in poses)
    y, x = np.nonzero(depth)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(view.matrix).T
    points = rays * depth[y, x, None] @ poses[0, :3, :3].T + poses[0, :3, 3]
    there = (points - poses[1, :3, 3]) @ poses[1, :3, :3]
    pixels = (there / there[:, 2:] @ view.matrix.T)[:, :2]
    seen = (pixels > 1).all(1) & (pixels < (158, 118)).all(1) & (there[:, 2] > 0)
    pixels, z = pixels[seen].astype(np.float32)[:, None], there[seen, 2]
    agrees = np.abs(cv2.remap(other_depth, pixels, None, cv2.INTER_NEAREST)[:, 0] - z) < 0.02 * z
    assert seen.mean() > 0.5
    assert agrees.mean() > 0.85
    blurred = [cv2.GaussianBlur(np.minimum(picture, 255), (0, 0), 1.5) for picture in (image, other)]
    moved = cv2.remap(blurred[1], pixels, None, cv2.INTER_LINEAR)[:, 0]
    difference = np.abs(moved - blurred[0][y[seen], x[seen]]).mean(1)[agrees]
    assert np.median(difference) < 4
    assert np.median(np.abs(np.roll(moved, 37, 0) - blurred[0][y[seen], x[seen]]).mean(1)[agrees]) > 12


@pytest.mark.parametrize("number", range(3))
def test_the_camera_moves_smoothly_and_keeps_its_distance(number, quick):
    room = make_room(3, number, IMAGES)
    poses = room.poses(160)
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1)
    steps = np.diff(poses[:, :3, 3], axis=0)
    assert 0.005 < np.linalg.norm(steps, axis=1).mean() < 0.2
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.02
    assert (poses[:, :3, 3] > room.zone.low).all()
    assert (poses[:, :3, 3] < room.zone.high).all()
    assert np.array_equal(room.poses(80), poses[:80])
    _, depth = render(room.world, room.camera(60, 80), poses[40])
    assert depth[depth > 0].min() > CLEARANCE / 2
    assert (depth > 0).mean() > 0.5


def test_a_room_is_a_function_of_its_numbers(quick):
    def picture(*numbers, **more):
        room = make_room(*numbers, IMAGES, **more)
        return room.frame(3, room.poses(4)[3], room.camera(36, 48))[0]

    first = picture(0, 1)
    assert np.array_equal(first, picture(0, 1))
    for other in (picture(1, 1), picture(0, 4), picture(0, 1, held_out=True)):
        assert not np.array_equal(first, other)


def test_nearly_all_of_a_picture_has_texture():
    for number in range(3):
        room = make_room(5, number, IMAGES)
        image, _ = room.frame(0, room.poses(1)[0], room.camera(120, 160))
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
        tiles = grey.reshape(6, 20, 8, 20).transpose(0, 2, 1, 3).reshape(48, -1)
        assert (tiles.std(1) > 4).mean() > 0.7
        assert 60 < grey.mean() < 180


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_open_rooms_renders_once_and_reads_what_was_drawn(cache, monkeypatch):
    monkeypatch.setattr(source, "CHUNK", 3)
    scenes = open_rooms(2, 48, 64, frames=4, images=IMAGES)
    assert [len(scene) for scene in scenes] == [4, 4]
    assert all(scene.metric and scene.ordered and scene.has_depth for scene in scenes)
    room = RoomFrames(48, 64, 4, images=IMAGES).room(1)
    image, depth = room.frame(2, room.poses(4)[2], room.camera(48, 64))
    frame = scenes[1][2]
    assert np.abs(frame.image.astype(int) - image).mean() < 6  # JPEG
    assert np.abs(frame.depth - depth).max() <= 0.00051
    assert np.allclose(frame.world_from_camera, room.poses(4)[2], atol=1e-6)
    assert np.allclose(frame.intrinsics, room.camera(48, 64).matrix, atol=1e-9)
    monkeypatch.setattr(source, "run_tasks", None)
    again = open_rooms(1, 48, 64, frames=4, images=IMAGES)
    assert again[0].identity == scenes[0].identity


def test_exact_scenes_lose_nothing(tmp_path):
    recipe = RoomFrames(48, 64, 2, images=IMAGES, exact=True)
    (folder,) = write_rooms(tmp_path, 1, recipe, jobs=1)
    room = recipe.room(0)
    image, depth = room.frame(1, room.poses(2)[1], room.camera(48, 64))
    assert np.array_equal(cv2.imread(str(folder / "rgb/000001.png")), image)
    assert np.array_equal(np.load(folder / "depth/000001.npy"), depth)


def test_all_that_determines_the_pixels_is_in_the_key():
    keys = {RoomFrames(*numbers, images=IMAGES).key for numbers in (
        (48, 64, 4), (64, 48, 4), (48, 64, 5), (48, 64, 4, 1), (48, 64, 4, 0, True))}
    keys |= {RoomFrames(48, 64, 4).key, RoomFrames(48, 64, 4, images=IMAGES, exact=True).key}
    assert len(keys) == 7


def test_killed_rendering_goes_on_where_it_was(tmp_path):
    program = ("import sys; from pathlib import Path; from kp_training.data.rooms.source import *;"
               "write_rooms(Path(sys.argv[1]), 1, RoomFrames(48, 64, 400), jobs=1)")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[1])
    partial = tmp_path / ".room-0000.partial" / "rgb"
    try:
        deadline = time.monotonic() + 60
        while len(list(partial.glob("0*.jpg"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    drawn = {path.name: path.stat().st_mtime_ns for path in partial.glob("0*.jpg")}
    assert 3 <= len(drawn) < 400
    assert not (tmp_path / "room-0000").exists()
    recipe = RoomFrames(48, 64, int(max(drawn)[:6]) + 3)  # a shorter scene begins with the same frames
    (scene,) = write_rooms(tmp_path, 1, recipe, jobs=1)
    assert {name: (scene / "rgb" / name).stat().st_mtime_ns for name in drawn} == drawn
    assert len(list((scene / "rgb").iterdir())) == len(list((scene / "depth").iterdir())) == recipe.frames


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="expected 2 frames of 32 pixels"):
        RoomFrames(16, 64)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="KP_FRONTEND_CACHE"):
        write_rooms(tmp_path / "file" / "rooms", 1, RoomFrames(48, 64, 2, images=IMAGES))
