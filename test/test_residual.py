"""Residual in training: the network, its loss against a slow reference, the points of a pair, the method."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from kp_frontend import load_extractor
from kp_frontend.decoding import PointsParameters
from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_training.data.described import DescribedPairs, mutual_partners
from kp_training.data.pairs import HomographyPairs, PairConfig
from kp_training.data.procedural import ProceduralImages
from kp_training.losses.residual import triplet_loss
from kp_training.methods.base import Context
from kp_training.methods.residual import Residual, ResidualConfig
from kp_training.networks.residual import ResidualNet

TINY = {"channels": 4, "height": 96, "width": 128, "points": 60}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images():
    return ProceduralImages(4, size=(140, 180))


def _context(images) -> Context:
    return Context(images=images, seed=5, device=torch.device("cpu"), on_device=False, cache=Path(os.devnull),
                   trained=lambda name: None, items=100)


def _run(module, *inputs):
    return module(*inputs)


def _count(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_parameter_counts():
    network = ResidualNet()
    assert _count(network.encoder) + _count(network.describe) == 957_248
    assert _count(network.refine) == 131_712
    assert _count(ResidualNet(classical_size=64).refine) == 115_328
    assert _count(ResidualNet(fusion=False)) == 957_248 + 128 * 257  # the last layer has 256 outputs
    halved = 957_248 - 2 * 64 * 577 - 2 * 128 * 1153
    assert _count(ResidualNet(small=True)) == halved + 131_712


@pytest.mark.parametrize("switches", [{}, {"fusion": False}, {"small": True}, {"relu_last": True}])
def test_descriptors_have_unit_length(switches):
    network = ResidualNet(channels=4, **switches)
    output = network(torch.rand(2, 3, 40, 56), torch.rand(2, 9, 2) * 40, F.normalize(torch.rand(2, 9, 128), dim=-1))
    assert output.shape == (2, 9, network.descriptor_size)
    torch.testing.assert_close(output.norm(dim=-1), torch.ones(2, 9))
    assert (output.min() >= 0) == switches.get("relu_last", False)


def test_the_map_is_read_half_a_cell_off_the_corner():
    """The centre of cell (i, j) is pixel 8·(j, i) + 3.5; between two cells, their mean; outside, the edge's value."""
    network = ResidualNet(channels=4, fusion=False).eval()
    image = torch.rand(1, 3, 40, 56)
    coarse = network.describe(network.encoder(image))[0]
    points = torch.tensor([[[8 * 5 + 3.5, 8 * 2 + 3.5], [8 * 5 + 7.5, 8 * 2 + 3.5], [0.0, 0.0]]])
    expected = torch.stack([coarse[:, 2, 5], (coarse[:, 2, 5] + coarse[:, 2, 6]) / 2, coarse[:, 0, 0]])
    torch.testing.assert_close(network(image, points)[0], F.normalize(expected, dim=-1))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_image_half_is_normalised_on_request(normalise):
    network = ResidualNet(channels=4, normalise_cnn=normalise).eval()
    inputs = torch.rand(1, 3, 40, 56), torch.rand(1, 5, 2) * 40, F.normalize(torch.rand(1, 5, 128), dim=-1)
    before = network(*inputs)
    with torch.no_grad():
        network.describe[-1].weight.mul_(10)
        network.describe[-1].bias.mul_(10)
    assert torch.allclose(network(*inputs), before, atol=1e-6) == normalise


def _triplets(anchors, others, points, partners, valid, margin, safe_radius) -> float:
    """The loss of one pair, anchor by anchor."""
    total = 0.0
    for anchor, partner in zip(anchors, partners.tolist()):
        if partner < 0:
            continue
        negatives = [float((anchor - other).norm()) for other, point, exists in zip(others, points, valid)
                     if exists and float((point - points[partner]).norm()) > safe_radius]
        if negatives:
            total += max(0.0, float((anchor - others[partner]).norm()) - min(negatives) + margin)
    return total


def _case(count: int = 12):
    anchors, others = (F.normalize(torch.randn(2, count, 8, dtype=torch.float64), dim=-1) for _ in range(2))
    points = torch.rand(2, count, 2, dtype=torch.float64) * 30
    partners = torch.stack([torch.randperm(count) for _ in range(2)])
    partners[:, ::3] = -1
    valid = torch.ones(2, count, dtype=torch.bool)
    valid[0] = torch.isin(torch.arange(count), partners[0])
    return anchors, others, points, partners, valid


@pytest.mark.parametrize(("margin", "safe_radius"), [(2.0, 8.0), (0.3, 4.0), (2.0, 100.0)])
def test_triplet_loss_by_hand(margin, safe_radius):
    case = _case()
    expected = sum(_triplets(*(part[row] for part in case), margin, safe_radius) for row in range(2))
    assert float(triplet_loss(*case, margin, safe_radius)["loss"]) == pytest.approx(expected, rel=1e-9)
    assert (expected > 0) == (safe_radius < 50)  # where no negative is far enough, there is nothing to lose


def test_what_the_loss_watches():
    """Two matched anchors: one is nearer to its partner than to the other point, one is not."""
    others = torch.eye(3)[None, :2]
    anchors = F.normalize(torch.tensor([[[1.0, 0, 0], [1.0, 0.5, 0]]]), dim=-1)
    points, valid = torch.tensor([[[0.0, 0], [50, 0]]]), torch.ones(1, 2, dtype=torch.bool)
    watched = triplet_loss(anchors, others, points, torch.tensor([[0, 1]]), valid, 2.0, 8.0)
    assert watched["accuracy"] == 0.5
    wrong, right = float((anchors[0, 1] - others[0, 1]).norm()), float((anchors[0, 1] - others[0, 0]).norm())
    assert float(watched["positive"]) == pytest.approx(wrong / 2, abs=1e-3)
    assert float(watched["negative"]) == pytest.approx((2**0.5 + right) / 2, abs=1e-3)


def test_gradients_reach_matches_and_their_negatives_only():
    anchors, others, points, partners, valid = _case()
    anchors, others = anchors.requires_grad_(), others.requires_grad_()
    triplet_loss(anchors, others, points, partners, valid, 2.0, 8.0)["loss"].backward()
    matched = partners >= 0
    assert (anchors.grad.norm(dim=-1)[matched] > 0).all()  # a margin of 2 never lets go
    assert (anchors.grad[~matched] == 0).all()
    assert (others.grad[~valid] == 0).all()
    assert torch.isfinite(anchors.grad).all()
    assert torch.isfinite(others.grad).all()


def test_no_match_is_no_loss():
    anchors, others, points, partners, valid = _case()
    anchors.requires_grad_()
    losses = triplet_loss(anchors, others, points, torch.full_like(partners, -1), torch.zeros_like(valid), 2.0, 8.0)
    losses["loss"].backward()
    assert all(float(value.detach()) == 0 for value in losses.values())
    assert (anchors.grad == 0).all()


def _features(points, descriptors=None) -> Features:
    points = np.array(points, np.float32).reshape(-1, 2)
    if descriptors is None:
        descriptors = np.tile(np.eye(2, dtype=np.float32)[0], (len(points), 1))
    return Features(points, np.ones(len(points), np.float32), np.array(descriptors, np.float32))


def test_partners_by_hand():
    """A shift by (10, 0): a partner 2 px off, one 4 px off, and two points after the same one."""
    shift = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])
    side0 = _features([[5, 5], [40, 5], [5, 40], [6, 40]])
    side1 = _features([[50, 9], [16.2, 40], [17, 5], [90, 90]])
    partners0, partners1 = mutual_partners(side0, side1, shift, radius=3)
    np.testing.assert_array_equal(partners0, [2, -1, -1, 1])
    np.testing.assert_array_equal(partners1, [-1, 3, 0, -1])


def test_partners_are_near_in_both_views():
    """Twice the size: 4 px apart in the large view are 2 px in the small one."""
    zoom = np.diag([2.0, 2, 1])
    side0, side1 = _features([[10, 10]]), _features([[24, 20]])
    assert mutual_partners(side0, side1, zoom, 3)[0].tolist() == [-1]
    assert mutual_partners(side1, side0, np.linalg.inv(zoom), 3)[0].tolist() == [-1]
    assert mutual_partners(side0, side1, zoom, 4)[0].tolist() == [0]


def test_partners_of_a_place_with_two_orientations_have_like_descriptors():
    side0 = _features([[5, 5], [5, 5]], [[1, 0], [0, 1]])
    side1 = _features([[5, 5], [5, 5]], [[0, 1], [1, 0]])
    partners0, partners1 = mutual_partners(side0, side1, np.eye(3), 3)
    assert partners0.tolist() == partners1.tolist() == [1, 0]


def test_points_behind_the_horizon_and_no_points_have_no_partner():
    tilted = np.array([[1.0, 0, 0], [0, 1, 0], [-0.02, 0, 1]])
    partners0, _ = mutual_partners(_features([[80, 5], [5, 5]]), _features([[5.6, 5.6]]), tilted, 3)
    assert partners0.tolist() == [-1, 0]
    partners0, partners1 = mutual_partners(_features([]), _features([[1, 1]]), np.eye(3), 3)
    assert (len(partners0), partners1.tolist()) == (0, [-1])


def test_pairs_hold_what_the_runtime_finds(images):
    views = PairConfig(geometry="wide", style="camera", color="rgb", height=96, width=128)
    pairs = HomographyPairs(images, views, seed=5)
    dataset = DescribedPairs(pairs, PointsParameters("rootsift"), 60, 3.0)
    sift, matched = load_extractor("rootsift", top_k=60), 0
    for number in range(4):
        item, pair = dataset[number], pairs[number]
        for side in (0, 1):
            image, mask = (getattr(pair, f"{name}{side}").numpy() for name in ("image", "mask"))
            assert (getattr(item, f"image{side}").numpy() == image).all()
            bgr = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2BGR)
            found = sift.extract(bgr, mask.astype(np.uint8)).top_k(60)
            valid = getattr(item, f"valid{side}")
            assert valid.tolist() == [True] * len(found) + [False] * (60 - len(found))
            for name in ("keypoints", "descriptors"):
                values = getattr(item, f"{name}{side}").numpy()
                np.testing.assert_array_equal(values[: len(found)], getattr(found, name))
                assert not values[len(found) :].any()
        rows = np.flatnonzero(item.partners0.numpy() >= 0)
        assert (item.partners1.numpy()[item.partners0.numpy()[rows]] == rows).all()
        warped = cv2.perspectiveTransform(item.keypoints0.numpy()[None, rows], pair.homography.numpy())[0] \
            if len(rows) else np.zeros((0, 2))
        partners = item.keypoints1.numpy()[item.partners0.numpy()[rows]]
        assert (np.linalg.norm(warped - partners, axis=1) <= 3.001).all()
        matched += len(rows)
    assert matched > 20


def _batch(method: Residual, images):
    dataset = method.stages()[0].dataset(_context(images))
    return default_collate([dataset[number] for number in range(2)])


@pytest.mark.parametrize("settings", [{}, {"fusion": False}, {"small": True, "detector": "rootsift", "upright": True}])
def test_the_losses_train_every_part(images, settings):
    method = Residual(ResidualConfig(**TINY, **settings))
    stage = method.stages()[0]
    network = stage.network()
    losses = stage.losses(_run, network, _batch(method, images))
    losses["loss"].backward()
    assert losses["matched"] > 1
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in network.parameters())
    assert (network.refine is None) == ("fusion" in settings)


def test_the_loss_looks_both_ways(images):
    """Exchanging the views changes nothing."""
    method = Residual(ResidualConfig(**TINY))
    stage = method.stages()[0]
    network, batch = stage.network(), _batch(method, images)
    swapped = type(batch)(*(part for pair in zip(batch[1::2], batch[0::2]) for part in pair))
    first, second = (float(stage.losses(_run, network, each)["loss"].detach()) for each in (batch, swapped))
    assert first == pytest.approx(second, rel=1e-5)


def test_a_few_steps_make_partners_likelier(images):
    method = Residual(ResidualConfig(**TINY))
    stage = method.stages()[0]
    network, batch = stage.network(), _batch(method, images)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    history = []
    for _ in range(10):
        losses = stage.losses(_run, network, batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(float(losses["loss"].detach()))
    assert history[-1] < 0.9 * history[0]


def test_data_depend_on_the_number_alone(images):
    method = Residual(ResidualConfig(**TINY))
    first, second = (method.stages()[0].dataset(_context(images)) for _ in range(2))
    second[0]
    for one, other in zip(first[3], second[3]):
        assert torch.equal(one, other)


def test_names_say_what_was_trained():
    assert Residual(ResidualConfig()).variant == "sift"
    config = ResidualConfig(detector="rootsift", upright=True, small=True, fusion=False)
    assert Residual(config).variant == "rootsift-upright-small-no_fusion"


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"detector": "orb"}, "unknown detector of residual 'orb'; choose one of: rootsift, sift, surf"),
        ({"points": 1}, "points=1: expected at least 2"),
        ({"height": 100}, "height=100, width=320: expected multiples of 8"),
        ({"contrast": -1.0}, "contrast=-1: expected at least 0"),
        ({"margin": -0.1}, "margin=-0.1: expected at least 0"),
    ],
)
def test_impossible_settings_say_why(settings, wrong):
    with pytest.raises(InputError, match=wrong):
        Residual(ResidualConfig(**settings))
