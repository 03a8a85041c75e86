"""Warps: homographies, and reprojection by depth and pose, exact on planes, with walls that hide, and by slow loops."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from posed_scenes import plane_homography, plane_scene, wall_scene

from kp_frontend.geometry import invert, so3_exp
from kp_training.data.posed import PosedScene
from kp_training.geometry.sampling import inside, pixel_grid, warp_points
from kp_training.geometry.warps import (
    AWAY,
    HomographyWarp,
    PosedView,
    Reprojection,
    Warped,
    _extremes,
    hidden,
    nearest_surface,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


_plane, _wall = functools.cache(plane_scene), functools.cache(wall_scene)


def _everywhere(height: int, width: int) -> torch.Tensor:
    return torch.ones(1, height, width, dtype=torch.bool)


def reprojection(scene: PosedScene, source: int, target: int, **settings) -> Reprojection:
    """Between two frames of a scene, as a batch of one."""
    views = []
    for frame in (scene[source], scene[target]):
        depth = torch.from_numpy(frame.depth[None].copy())
        views.append(PosedView(depth, torch.from_numpy(frame.intrinsics).float()[None], torch.ones_like(depth) > 0))
    moved = invert(scene.poses[target]) @ scene.poses[source]
    return Reprojection(*views, torch.from_numpy(moved).float()[None], **settings)


def _same(first: Warped, second: Warped) -> None:
    torch.testing.assert_close(first.points, second.points, atol=1e-3, rtol=1e-5)
    assert torch.equal(first.known, second.known)
    assert torch.equal(first.visible, second.visible)


def _pixels(view: PosedView) -> torch.Tensor:
    return pixel_grid(*view.mask.shape[-2:]).reshape(1, -1, 2)


def test_homography_warp():
    shift = torch.tensor([[[1.0, 0, 3], [0, 1, -2], [0, 0, 1]]])
    mask0, mask1 = _everywhere(6, 8), _everywhere(6, 8)
    mask0[0, 3, 1], mask1[0, 2, 5] = False, False
    points = torch.tensor([[[1.0, 3.0], [2, 4], [2, 5], [0, 1], [3.9, 2], [4.1, 2], [1.5, 3]]])
    warp = HomographyWarp(shift, mask0, mask1)
    warped = warp(points)
    assert warped.points[0, 1].tolist() == [5, 2]
    assert warped.known[0].tolist() == [False, True, True, True, True, True, False]
    assert warped.visible[0].tolist() == [False, False, True, False, True, False, False]
    assert not hidden(warped, mask1).any(), "what a view does not show is not hidden by anything"
    back = warp.inverse(warped.points)
    torch.testing.assert_close(back.points, points)
    assert back.visible[0].tolist() == [False, False, True, True, True, True, False]
    assert back.known[0, 1].item() is False
    _same(warp.pixels(), warp(pixel_grid(6, 8).reshape(1, -1, 2)))


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (0, 3)])
def test_a_plane_moves_by_its_homography(source, target):
    scene = _plane()
    warp = reprojection(scene, source, target)
    pixels = _pixels(warp.source)
    homography = torch.from_numpy(plane_homography(scene, source, target)).float()[None]
    warped, truth = warp(pixels), warp_points(homography, pixels)
    torch.testing.assert_close(warped.points, truth, atol=2e-3, rtol=1e-5)
    assert warped.known.all()
    assert torch.equal(warped.visible, inside(warped.points, 96, 128)), "a plane hides nothing of itself"
    inverse = reprojection(scene, target, source)
    torch.testing.assert_close(warp.inverse(pixels).points, inverse(pixels).points, atol=2e-3, rtol=1e-5)
    assert torch.equal(warp.inverse(pixels).visible, inverse(pixels).visible)


def _slow(warp: Reprojection, x: int, y: int) -> tuple[list[float], bool, bool]:
    """One pixel of a Reprojection of one pair: its place, whether that is known, and whether it is visible."""
    height, width = warp.source.mask.shape[1:]

    def surface(depth, u, v):
        margin = warp.window // 2
        values = [float(depth[0, j, i]) for j in range(v - margin, v + margin + 1)
                  for i in range(u - margin, u + margin + 1) if 0 <= j < height and 0 <= i < width and depth[0, j, i]]
        middle = float(depth[0, v, u])
        border = u < margin or v < margin or u >= width - margin or v >= height - margin
        if not middle or border or not warp.window:
            return middle
        return min(values) if middle / min(values) - 1 - min(1 - middle / max(values), 0.1) >= warp.jump else middle

    depth = surface(warp.source.depth, x, y)
    if not depth or not warp.source.mask[0, y, x]:
        return [AWAY] * 2, False, False
    ray = np.linalg.inv(warp.source.intrinsics[0].double().numpy()) @ [x, y, 1]
    moved = warp.target_from_source[0].double().numpy() @ [*(depth * ray), 1]
    if moved[2] <= 0:
        return [AWAY] * 2, True, False
    u, v, w = warp.target.intrinsics[0].double().numpy() @ moved[:3]
    u, v = u / w, v / w
    if not (0 <= u <= width - 1 and 0 <= v <= height - 1):
        return [u, v], True, False
    shown = sum((1 - abs(u - i)) * (1 - abs(v - j)) for j in {math.floor(v), math.ceil(v)}
                for i in {math.floor(u), math.ceil(u)} if warp.target.mask[0, j, i]) > 0.99
    near = [surface(warp.target.depth, i, j) for j in range(round(v) - 1, round(v) + 2)
            for i in range(round(u) - 1, round(u) + 2) if 0 <= j < height and 0 <= i < width]
    near = [value for value in near if value]
    seen = near and min(near) * (1 - warp.occlusion) <= moved[2] <= max(near) * (1 + warp.occlusion)
    return [u, v], True, bool(shown and (seen or not warp.occlusion))


@pytest.mark.parametrize("settings", [{}, {"window": 0}, {"occlusion": 0.0}, {"window": 3, "jump": 0.2}])
def test_reprojection_is_that_of_loops(settings):
    """Of blocks and slopes with holes, seen by a camera that turns and goes into them."""
    height, width = 14, 17
    blocks = torch.tensor([2.0, 1.95, 1.9, 1.7, 0.3])[torch.randint(5, (2, 1, 5, 6))]
    depth = blocks.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., :height, :width]
    depth = depth + 0.02 * pixel_grid(height, width)[..., 0]
    depth[torch.rand_like(depth) < 0.05] = 0
    masks = torch.rand(2, 1, height, width) > 0.03
    intrinsics = torch.tensor([[[15.0, 0, 7], [0, 14, 6], [0, 0, 1]], [[12, 0, 9], [0, 13, 8], [0, 0, 1]]])[:, None]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = so3_exp(np.array([0.05, -0.1, 0.3])), [0.1, -0.1, -0.5]
    views = [PosedView(*values) for values in zip(depth, intrinsics, masks)]
    warp = Reprojection(*views, torch.from_numpy(pose).float()[None], **settings)
    pixels = _pixels(warp.source)
    found = warp(pixels)
    places, known, visible = zip(*(_slow(warp, int(x), int(y)) for x, y in pixels[0]))
    assert found.known[0].tolist() == list(known)
    assert found.visible[0].tolist() == list(visible)
    assert 10 < sum(visible) < sum(known) < len(places)
    assert any(there and place == [AWAY] * 2 for place, there in zip(places, known)), "some are behind the camera"
    torch.testing.assert_close(found.points[0], torch.tensor(places, dtype=torch.float32), atol=5e-3, rtol=1e-3)
    _same(warp.pixels(), found)


def test_one_frame_and_several():
    """A source or target of one is that of each pair, and no mask is one that shows all."""
    depth, masks = 2 + torch.rand(3, 9, 12), torch.ones(3, 9, 12, dtype=torch.bool)
    intrinsics, pose = torch.tensor([[[10.0, 0, 6], [0, 10, 4], [0, 0, 1]]]).expand(3, -1, -1), torch.eye(4)
    pose[0, 3] = 0.3
    poses = pose.expand(3, -1, -1)
    several, plain = PosedView(depth, intrinsics, masks), PosedView(depth, intrinsics)
    single = PosedView(depth[:1], intrinsics[:1])
    for source, target in ((several, single), (single, plain)):
        found = Reprojection(source, target, poses, window=0).pixels()
        assert found.visible.any()
        for row in range(3):
            one = [PosedView(*(values[row % len(values)][None] for values in view[:2]), masks[:1])
                   for view in (source, target)]
            alone = Reprojection(*one, poses[:1], window=0).pixels()
            _same(alone, Warped(*(values[row][None] for values in found)))


@pytest.mark.parametrize("side", [3, 5, 9])
def test_extremes_of_windows(side):
    depth = torch.rand(2, 12, 17) * (torch.rand(2, 12, 17) > 0.4)
    depth[0, :6] = 0
    near, far = _extremes(depth, side)
    padded = F.pad(depth, [side // 2] * 4).unfold(1, side, 1).unfold(2, side, 1).flatten(3)
    assert torch.equal(far, padded.amax(3))
    assert torch.equal(near, padded.masked_fill(padded == 0, torch.inf).amin(3))


def test_what_a_wall_hides():
    """Points of the back wall are hidden where their ray to the second camera crosses the wall before it."""
    scene = _wall()
    warp = reprojection(scene, 3, 0)
    pixels = _pixels(warp.source)
    warped = warp(pixels)
    behind = warp.source.depth.flatten() > 3
    rays = (pixels[0].numpy() - scene.intrinsics[3][:2, 2]) / scene.intrinsics[3][[0, 1], [0, 1]]
    across = rays[:, 0] * warp.source.depth.flatten().numpy() + scene.poses[3][0, 3]  # x in the world, z = 4
    crossing = torch.from_numpy(across / 2)  # x where the ray to frame 0, at the origin, passes z = 2
    edge = nearest_surface(warp.source.depth, 5, 0.03).flatten() < 3  # taken to be of the front wall
    within = behind & ~edge & inside(warped.points, 96, 128)[0]
    pixel = 2 / scene.intrinsics[0][0, 0]
    lost, kept = within & (crossing < -4 * pixel), within & (crossing > 4 * pixel)
    assert lost.sum() > 300
    assert kept.sum() > 300
    assert not warped.visible[0, lost].any()
    assert torch.equal(hidden(warped, warp.target.mask)[0, within], ~warped.visible[0, within])
    assert warped.visible[0, kept].all()
    assert replace(warp, occlusion=0.0)(pixels).visible[0, lost].all(), "without the check nothing is hidden"


def test_at_a_jump_the_nearest_surface_is_taken():
    depth = torch.full((1, 11, 15), 4.0)
    depth[..., :6] = 2.0
    depth[0, 5, 7] = 0.0
    found = nearest_surface(depth, 5, 0.03)[0]
    assert found[4].tolist() == [2.0] * 8 + [4.0] * 7
    assert found[5].tolist() == [2.0] * 7 + [0.0] + [4.0] * 7, "what is unknown stays unknown"
    for row in (0, 1, 9, 10):
        assert found[row].tolist() == depth[0, row].tolist(), "off at the border"
    assert torch.equal(nearest_surface(depth.mT, 5, 0.03)[0], found.T)
    assert torch.equal(nearest_surface(depth, 0, 0.03), depth)
    assert torch.equal(nearest_surface(depth, 5, 1.01), depth), "less than the jump"
    assert nearest_surface(depth, 3, 0.03)[0, 4].tolist() == [2.0] * 7 + [4.0] * 8


def test_a_floor_is_no_jump():
    floor = (60 / (pixel_grid(40, 20)[..., 1] + 25))[None]
    near, far = floor[0, :-4], floor[0, 4:]
    assert ((near - far) / far > 0.03).all(), "though depths in a window differ as much as at one"
    torch.testing.assert_close(nearest_surface(floor, 5, 0.03), floor)


def test_an_edge_in_front_is_seen_from_both_sides():
    """What the window puts on the front wall lands on what it puts there in the other view."""
    warp = reprojection(_wall(), 0, 1)
    edge = (warp.source.depth > 3) & (nearest_surface(warp.source.depth, 5, 0.03) < 3)
    points = edge[0].nonzero().flip(1).float()[None]
    warped = warp(points)
    assert points.shape[1] > 100
    assert warped.visible[inside(warped.points, 96, 128, 2)].all()


def test_behind_the_camera():
    """Known not to be seen: the second camera looks away, or has passed the wall."""
    scene = _plane()
    pose = np.eye(4)
    pose[:3, :3] = so3_exp(np.array([0, np.pi, 0]))
    for moved in (pose, np.block([[np.eye(3), np.array([[0], [0], [-9.0]])], [np.zeros((1, 3)), 1.0]])):
        warp = replace(reprojection(scene, 0, 0), target_from_source=torch.from_numpy(moved).float()[None])
        warped = warp(_pixels(warp.source))
        assert warped.known.all()
        assert not warped.visible.any()
        assert (warped.points == AWAY).all()
        assert not hidden(warped, warp.target.mask).any()


def test_what_has_no_depth_is_not_known():
    warp = reprojection(_plane(), 0, 1)
    warp.source.depth[0, 40:60, 50:70] = 0
    warp.source.mask[0, :, :9] = False
    points = torch.tensor([[[60.0, 50.0], [8.0, 50.0], [8.5, 50.0], [40.0, 50.0], [-2.0, 50.0], [9.0, 50.0]]])
    warped = warp(points)
    assert warped.known[0].tolist() == [False, False, False, True, False, True]
    assert (warped.points[~warped.known] == AWAY).all()
    assert not hidden(warped, warp.target.mask)[~warped.known].any()


def test_where_the_target_has_no_depth_nobody_can_tell():
    warp = reprojection(_plane(), 0, 1)
    warp.target.depth[0, :, 40:60] = 0
    warp.target.mask[0, 70:] = False
    warped = warp(_pixels(warp.source))
    x, y = warped.points[0].unbind(-1)
    unsure, sure = (x > 41) & (x < 58), (x < 38) | (x > 61)
    within = inside(warped.points, 96, 128)[0]
    assert not warped.visible[0, unsure].any()
    assert warped.visible[0, sure & within & (y < 69)].all()
    assert not warped.visible[0, y > 69].any()
    lost = hidden(warped, warp.target.mask)[0]
    assert lost[unsure & within & (y < 69)].all()
    assert not lost[sure | (y > 69)].any()


def test_points_carry_gradients():
    """By differences, of points that stay on one pixel and so on one depth; none where there is no place."""
    warp = reprojection(_plane(), 0, 2)
    warp.source.depth[0, :40] = 0
    points = (torch.rand(1, 20, 2) * torch.tensor([100, 80]) + 5).round().requires_grad_()
    weights = torch.randn(1, 20, 2)
    gradient, = torch.autograd.grad((warp(points).points * weights).sum(), points)
    assert (gradient[~warp(points).known] == 0).all()
    assert warp(points).known.sum() > 5
    for axis in range(2):
        step = torch.zeros(2)
        step[axis] = 0.25
        with torch.no_grad():
            slope = ((warp(points + step).points - warp(points - step).points) * weights).sum(-1) / 0.5
        torch.testing.assert_close(gradient[..., axis], slope, atol=5e-3, rtol=1e-2)
