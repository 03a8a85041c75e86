"""Each loss against a slow and obvious reference, and gradients where they must flow."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kp_frontend.settings import read_settings
from kp_training.geometry.warps import HomographyWarp
from kp_training.losses import detection, dual_softmax
from kp_training.methods.kp2d import Kp2dConfig
from kp_training.networks.compact import CompactNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_compact_is_small():
    assert sum(value.numel() for value in CompactNet().parameters()) < 350_000


def test_compact_scores_move_with_the_image():
    """Shifting the image by a multiple of the coarsest stride shifts the scores, away from the border."""
    network = CompactNet().eval()
    image = torch.rand(1, 1, 256, 320)
    with torch.no_grad():
        logits, moved = network(image)[0], network(torch.roll(image, (32, 64), (2, 3)))[0]
    torch.testing.assert_close(torch.roll(logits, (32, 64), (2, 3))[..., 128:-64, 160:-96],
                               moved[..., 128:-64, 160:-96], atol=1e-3, rtol=1e-3)


def test_dual_softmax_reference():
    descriptors0, descriptors1 = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    points = torch.rand(2, 5, 2) * 30
    points[0, 1] = points[0, 0] + 1  # too near to be a mistake
    valid = torch.tensor([[True, True, True, False, True], [True] * 5])
    logits = dual_softmax.similarities(descriptors0, descriptors1, points, valid, 0.1, 4.0)
    terms, right = [], []
    for b in range(2):
        def logit(i, j, b=b):
            return float(F.cosine_similarity(descriptors0[b, i], descriptors1[b, j], dim=0)) / 0.1

        def counts(i, j, b=b):
            return i == j or (valid[b, j] and valid[b, i] and float((points[b, i] - points[b, j]).norm()) >= 4)

        for i in (i for i in range(5) if valid[b, i]):
            row = {j: logit(i, j) for j in range(5) if counts(i, j)}
            column = {j: logit(j, i) for j in range(5) if counts(j, i)}
            both = [logit(i, i) - math.log(sum(map(math.exp, line.values()))) for line in (row, column)]
            terms.append(-sum(both))
            right.append(row[i] == max(row.values()) and column[i] == max(column.values()))
    assert float(dual_softmax.dual_softmax_loss(logits, valid)) == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert dual_softmax.mutual_matches(logits)[valid].tolist() == right


def test_dual_softmax_pulls_matches_together():
    descriptors = torch.randn(1, 6, 8, requires_grad=True)
    other = torch.randn(1, 6, 8)
    points, valid = torch.arange(12.0).reshape(1, 6, 2) * 10, torch.ones(1, 6, dtype=torch.bool)
    before = None
    for _ in range(30):
        logits = dual_softmax.similarities(descriptors, other, points, valid, 0.1, 4.0)
        loss = dual_softmax.dual_softmax_loss(logits, valid)
        before = before or loss.item()
        gradient, = torch.autograd.grad(loss, descriptors)
        descriptors = (descriptors - 0.5 * gradient).detach().requires_grad_()
    assert loss.item() < 0.5 * before
    assert dual_softmax.mutual_matches(logits).all()


def test_no_valid_point_gives_zero_and_finite_gradients():
    descriptors = torch.randn(1, 4, 8, requires_grad=True)
    valid = torch.zeros(1, 4, dtype=torch.bool)
    logits = dual_softmax.similarities(descriptors, descriptors, torch.zeros(1, 4, 2), valid, 0.1, 4.0)
    loss = dual_softmax.dual_softmax_loss(logits, valid)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(descriptors.grad).all()


def test_corner_loss_reference():
    logits = torch.randn(1, 1, 8, 24)
    labels = torch.zeros(1, 1, 8, 24, dtype=torch.uint8)
    labels[0, 0, 2, 3], labels[0, 0, 5, 6] = 255, 150  # cell 0: the stronger one counts
    labels[0, 0, 1, 17] = 51  # cell 2: a strength of (1/5)⁴, so a share of 1/25
    mask = torch.ones(1, 1, 8, 24, dtype=torch.bool)
    cells = [torch.cat([logits[0, 0, :, start : start + 8].reshape(-1), torch.zeros(1)]).log_softmax(0)
             for start in (0, 8, 16)]
    corner, ground, between = -cells[0][2 * 8 + 3], -cells[1][64], -0.04 * cells[2][8 + 1] - 0.96 * cells[2][64]
    loss = detection.corner_loss(logits, labels, mask)
    torch.testing.assert_close(loss, (corner + ground + between) / 3)
    mask[0, 0, 0, 9] = False
    loss = detection.corner_loss(logits, labels, mask)
    torch.testing.assert_close(loss, (corner + between) / 2)


def test_repeatability_loss_reference():
    """The expected reward of drawing from both cells, by going through all pairs of draws."""
    ours, theirs = torch.randn(1, 1, 4, 4) * 2, torch.randn(1, 1, 4, 4) * 2
    first, second = (torch.cat([maps[0, 0, :2, :2].reshape(-1), torch.zeros(1)]).softmax(0) for maps in (ours, theirs))
    reward = sum(float(first[i] * second[j]) * (1 if i == j else -0.3) for i in range(4) for j in range(4))
    whole = torch.zeros(1, 2, 2)
    whole[0, 0, 0] = 1
    loss = detection.repeatability_loss(ours, theirs, whole, 0.3, cell=2)
    assert float(loss) == pytest.approx(-reward, rel=1e-4)


def test_repeatability_loss_wants_points_and_no_edges():
    def gradient(logits):
        logits = logits[None, None].requires_grad_()
        loss = detection.repeatability_loss(logits, logits.detach(), torch.ones(1, 1, 1), 0.15)
        return torch.autograd.grad(loss, logits)[0][0, 0]

    point, edge = torch.full((8, 8), -9.0), torch.full((8, 8), -9.0)
    point[3, 3] = 1.0
    edge[3, :] = 1.0
    assert gradient(point)[3, 3] < 0, "descent raises a point's score"
    assert (gradient(edge)[3] > 0).all(), "and lowers an edge's"


def test_agreement_loss_reference():
    ours, theirs = torch.randn(1, 1, 8, 16), torch.randn(1, 1, 8, 16)
    weights = torch.tensor([[[1.0, 3.0]]])
    expected = sum(
        weight * -torch.log((ours[0, 0, :, start : start + 8].reshape(-1).softmax(0)
                             * theirs[0, 0, :, start : start + 8].reshape(-1).softmax(0)).sum())
        for weight, start in ((1, 0), (3, 8))
    ) / 4
    torch.testing.assert_close(detection.agreement_loss(ours, theirs, weights), expected)


def test_warped_logits_follow_the_homography():
    logits = torch.randn(1, 1, 16, 24)
    homography = torch.tensor([[[1.0, 0, 3], [0, 1, 2], [0, 0, 1]]])  # view 0's (x, y) is view 1's (x + 3, y + 2)
    mask = torch.ones(1, 16, 24, dtype=torch.bool)
    mask[0, 5, 8] = False
    warped, seen = detection.warp_logits(logits, HomographyWarp(homography, torch.ones_like(mask), mask))
    torch.testing.assert_close(warped[..., :14, :21], logits[..., 2:, 3:], atol=1e-4, rtol=1e-4)
    assert seen[0, 0, :14, :21].sum() == 14 * 21 - 1
    assert not seen[0, 0, 3, 5]
    assert not seen[..., 14:, :].any()


def test_points_are_drawn_from_their_own_cells():
    logits = torch.full((1, 1, 16, 24), -9.0)
    logits[0, 0, 3, 4], logits[0, 0, 10, 23] = 9, 9
    points = detection.draw_points(logits, 8)
    assert points.shape == (1, 6, 2)
    assert points[0, 0].tolist() == [4, 3]
    assert points[0, 5].tolist() == [23, 10]
    cells = torch.tensor([[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]])
    drawn = detection.draw_points(logits, 8, torch.randn_like(logits))[0]
    assert ((drawn >= cells) & (drawn < cells + 8)).all()


def _everywhere_same(side):
    mask = torch.ones(1, side, side, dtype=torch.bool)
    return HomographyWarp(torch.eye(3)[None], mask, mask)


def test_location_loss_measures_the_shift_and_moves_the_peak():
    def bump(x, y):
        grid = detection.pixel_grid(20, 20)
        return torch.exp(-((grid - torch.tensor([x, y])) ** 2).sum(-1))[None, None]

    points, identity, weights = torch.tensor([[[9.0, 9.0]]]), _everywhere_same(20), torch.ones(1, 1)
    same = detection.location_loss(bump(9.2, 9.0), bump(9.2, 9.0), points, identity, weights)
    apart = detection.location_loss(bump(9.2, 9.0), bump(8.8, 9.3), points, identity, weights)
    assert float(same) < 0.02
    assert float(apart) == pytest.approx(0.5, abs=0.08)
    logits = torch.logit(bump(9.2, 9.0).clamp(1e-4, 1 - 1e-4)).requires_grad_()
    loss = detection.location_loss(torch.sigmoid(logits), bump(8.8, 9.3), points, identity, weights)
    gradient, = torch.autograd.grad(loss, logits)
    assert gradient[0, 0, 9, 10] > 0 > gradient[0, 0, 9, 8], "mass must move towards the other view's point"


def test_config_values_are_converted_and_checked():
    config = read_settings("kp2d", Kp2dConfig, {"height": "96", "zoom": "1.5", "network": "compact"})
    assert (config.height, config.zoom, config.network) == (96, 1.5, "compact")
    for key, value in (("height", "3.5"), ("zoom", "wide"), ("zoom", "nan"), ("height", True)):
        with pytest.raises(ValueError, match=f"{key}={value}: expected a"):
            read_settings("kp2d", Kp2dConfig, {key: value})
    with pytest.raises(ValueError, match=r"unknown setting of kp2d 'hight'; choose one of: .*height"):
        read_settings("kp2d", Kp2dConfig, {"hight": 3})
