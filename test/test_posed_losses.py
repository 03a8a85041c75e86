"""What the losses make of two places: of points without depth, hidden ones, and ones that leave the view."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from posed_scenes import plane_homography, plane_scene, wall_scene

from kp_frontend.geometry import invert
from kp_training.data.posed import PosedScene
from kp_training.data.posed_pairs import PosedBatch
from kp_training.geometry.sampling import pixel_grid
from kp_training.geometry.warps import AWAY, HomographyWarp, Warped, hidden
from kp_training.losses import detection
from kp_training.losses.silk import warp_pairs
from kp_training.losses.superpoint import DenseDescriptorLoss, SparseDescriptorLoss, cell_centres
from kp_training.methods.compact_objective import DualSoftmaxConfig, dual_softmax_objective
from kp_training.networks.compact import CompactNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@functools.cache
def _wall() -> PosedScene:
    return wall_scene(4, 64, 80)


@dataclass(frozen=True)
class Told:
    """A warp that says what it was told, whatever it is asked."""

    warped: Warped

    def __call__(self, points: torch.Tensor) -> Warped:
        assert points.shape == self.warped.points.shape
        return self.warped


def batch_of(scene: PosedScene, source: int, target: int) -> PosedBatch:
    """One pair of frames, grey, without labels."""
    frames = scene[source], scene[target]
    images = [torch.from_numpy(frame.image[None, None, ..., 1].copy()) for frame in frames]
    depths = [torch.from_numpy(frame.depth[None].copy()) for frame in frames]
    intrinsics = [torch.from_numpy(frame.intrinsics).float()[None] for frame in frames]
    moved = torch.from_numpy(invert(frames[1].world_from_camera) @ frames[0].world_from_camera).float()[None]
    nothing = [torch.zeros_like(image[:, 0]) for image in images]
    everywhere = [labels == 0 for labels in nothing]
    return PosedBatch(*images, *depths, *intrinsics, moved, *everywhere, *nothing, *everywhere)


SEEN, AWAY_FROM_VIEW, HIDDEN, UNKNOWN = range(4)


def _told(rows: int, columns: int) -> tuple[Told, list[int]]:
    """Cells that stay where they are, up to a pixel or two, but for one of each other kind."""
    points = cell_centres(torch.zeros(1, 1, rows, columns))[None] + 2 * torch.rand(1, rows * columns, 2)
    kinds = [SEEN] * (rows * columns)
    kinds[1], kinds[4], kinds[6] = AWAY_FROM_VIEW, HIDDEN, UNKNOWN
    kinds = torch.tensor(kinds)
    points[0, kinds == AWAY_FROM_VIEW] = torch.tensor([-20.0, 5.0])
    points[0, kinds == UNKNOWN] = AWAY
    return Told(Warped(points, (kinds != UNKNOWN)[None], (kinds == SEEN)[None])), kinds.tolist()


def _everywhere(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(1, 8 * rows, 8 * columns, dtype=torch.bool)


@pytest.mark.parametrize("near", [7.5, 3.5])
def test_dense_descriptor_loss_reference(near):
    """A cell that leaves the view repels all; one that is hidden or has no depth is as if it were not there."""
    warp, kinds = _told(3, 4)
    maps = [torch.randn(1, 5, 3, 4, requires_grad=True) for _ in range(2)]
    loss = DenseDescriptorLoss(near=near)(*maps, warp, _everywhere(3, 4), _everywhere(3, 4))
    first, second = (F.normalize(values.detach()[0].flatten(1), dim=0).T.numpy() for values in maps)
    rows = [cell for cell in range(12) if kinds[cell] in (SEEN, AWAY_FROM_VIEW)]
    dots = np.maximum(np.array([[first[i] @ second[j] for j in range(12)] for i in rows]), 0)
    for row in dots:
        row /= math.sqrt((row**2).sum())
    for column in dots.T:
        column /= math.sqrt((column**2).sum()) or 1
    total = positives = 0
    for a, i in enumerate(rows):
        for j in range(12):
            centre = (8 * (j % 4) + 3.5, 8 * (j // 4) + 3.5)
            close = math.dist(warp.warped.points[0, i].tolist(), centre) <= near
            total += 0.05 * max(0, 1 - dots[a, j]) if close else max(0, dots[a, j] - 0.2)
            positives += close
    assert positives >= 9
    assert loss.item() == pytest.approx(1e4 * total / (len(rows) * 12), rel=1e-4)
    gradient, = torch.autograd.grad(loss, maps[0])
    reached = gradient[0].flatten(1).abs().sum(0) > 0
    assert reached.tolist() == [kind in (SEEN, AWAY_FROM_VIEW) for kind in kinds]


def test_sparse_descriptor_loss_starts_from_what_is_seen():
    warp, kinds = _told(3, 4)
    maps = [torch.randn(1, 5, 3, 4, requires_grad=True) for _ in range(2)]
    SparseDescriptorLoss()(*maps, warp, _everywhere(3, 4), _everywhere(3, 4)).backward()
    assert (maps[0].grad[0].flatten(1).abs().sum(0) > 0).tolist() == [kind == SEEN for kind in kinds]


@pytest.mark.parametrize("margin", [0, 9])
def test_pairs_on_a_plane_are_those_of_its_homography(margin):
    scene = plane_scene(3, 64, 80)
    batch = batch_of(scene, 0, 2)
    maps = torch.zeros(1, 1, 64 - 2 * margin, 80 - 2 * margin)
    plain = torch.from_numpy(plane_homography(scene, 0, 2)).float()[None]
    (first, second), = warp_pairs(batch.warp(), maps, margin)
    truth, = warp_pairs(HomographyWarp(plain, batch.mask0, batch.mask1), maps, margin)
    ours, theirs = (set(zip(*(side.tolist() for side in pairs))) for pairs in ((first, second), truth))
    assert len(theirs) > 500
    assert len(ours ^ theirs) <= 0.01 * len(theirs), "but for rounding at half a pixel"


def test_no_pair_of_a_hidden_pixel():
    batch = batch_of(_wall(), 3, 0)
    warp = batch.warp()
    pixels, maps = pixel_grid(64, 80).reshape(1, -1, 2), torch.zeros(1, 1, 64, 80)
    lost = hidden(warp(pixels), batch.mask1)[0]
    assert lost.sum() > 100
    (first, _), = warp_pairs(warp, maps, 0)
    assert len(first) > 500
    assert not lost[first].any()
    batch.depth0[0, :, :20] = 0
    (first, _), = warp_pairs(batch.warp(), maps, 0)
    assert (first % 80 >= 20).all(), "nor of one without depth"
    (_, first), = warp_pairs(batch.warp().inverse, maps, 0)
    assert (first % 80 >= 20).all()


def test_warped_logits_follow_the_surfaces():
    """A map of x of view 1 tells where view 0 looked it up."""
    batch = batch_of(_wall(), 3, 0)
    warp = batch.warp()
    truth = warp(pixel_grid(64, 80).reshape(1, -1, 2))
    found, seen = detection.warp_logits(pixel_grid(64, 80)[None, ..., 0][None], warp)
    assert torch.equal(seen.flatten(), truth.visible[0])
    torch.testing.assert_close(found[seen], truth.points[..., 0][truth.visible], atol=1e-3, rtol=1e-4)


def test_location_loss_counts_what_both_see():
    """Peaks that do not agree cost nothing where the second view does not see the first's."""
    batch = batch_of(_wall(), 3, 0)
    warp = batch.warp()
    points = pixel_grid(64, 80).reshape(1, -1, 2)
    visible, lost = warp(points).visible[0], hidden(warp(points), batch.mask1)[0]
    weights = torch.ones(1, len(points[0]))
    maps = [torch.rand(1, 1, 64, 80) for _ in range(2)]
    both, unseen = (detection.location_loss(*maps, points[:, kind], warp, weights[:, kind], radius=0)
                    for kind in (visible, lost))
    assert 0 < both < 1, "to the nearest pixel"
    assert unseen == 0
    batch.depth0[:] = 0
    assert detection.location_loss(*maps, points, batch.warp(), weights) == 0


@pytest.mark.parametrize("make", [plane_scene, wall_scene])
def test_compact_learns_from_two_places(make):
    batch = batch_of(make(3, 64, 96), 0, 2)
    network = CompactNet()
    found = dual_softmax_objective(lambda module, *inputs: module(*inputs), network, batch, DualSoftmaxConfig())
    assert all(torch.isfinite(value) for value in found.values())
    assert found["descriptor"] > 0
    assert found["location"] > 0
    found["loss"].backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("view", [0, 1])
def test_compact_learns_nothing_without_depth(view):
    """Of either view: without the second's nobody can tell what is hidden."""
    batch = batch_of(plane_scene(2, 64, 96), 0, 1)
    (batch.depth0, batch.depth1)[view][:] = 0
    found = dual_softmax_objective(lambda module, *inputs: module(*inputs), CompactNet(), batch, DualSoftmaxConfig())
    assert [found[name].item() for name in ("descriptor", "reliability", "agreement", "location")] == [0] * 4
    assert torch.isfinite(found["loss"])
