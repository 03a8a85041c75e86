"""KP2D's losses and IO-Net's against slow references, and what they reach."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kp_training.losses import keypointnet, outliers
from kp_training.losses.keypointnet import CODE, PAPER
from kp_training.networks.ionet import IoNet
from kp_training.networks.keypointnet import CellMaps, without_border

SHIFT = (5.0, -3.0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _shift_homography(x, y):
    return torch.tensor([[[1, 0, x], [0, 1, y], [0, 0, 1.0]]])


def _random_maps(seed: int, count: int = 1) -> CellMaps:
    """Maps of 48×64 images with the border's scores at 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, 1, 6, 8, generator=generator) * without_border(torch.ones(count, 1, 6, 8))
    return CellMaps(scores, torch.tanh(torch.randn(count, 2, 6, 8, generator=generator)),
                    torch.randn(count, 5, 12, 16, generator=generator))


def _points(maps):
    """The cells' points, one by one, kept inside the image."""
    at = [(8 * j + 3.5 + 7 * float(maps.offsets[0, 0, i, j]), 8 * i + 3.5 + 7 * float(maps.offsets[0, 1, i, j]))
          for i in range(6) for j in range(8)]
    return [(min(max(x, 0), 63), min(max(y, 0), 47)) for x, y in at]


def _read(maps, x, y):
    """Bilinear with the corner cells' centres on the image's corner pixels."""
    height, width = maps.shape[-2:]
    column, row = min(max(x / 63 * (width - 1), 0), width - 1), min(max(y / 47 * (height - 1), 0), height - 1)
    j, i = min(int(column), width - 2), min(int(row), height - 2)
    a, b = column - j, row - i
    corners = maps[0, :, i : i + 2, j : j + 2]
    return ((1 - b) * ((1 - a) * corners[:, 0, 0] + a * corners[:, 0, 1])
            + b * ((1 - a) * corners[:, 1, 0] + a * corners[:, 1, 1]))


def _slow_paper_losses(source, target, box):
    """Terms of KP2D's losses point by point: distances and peaks of pairs, consistency, triplets."""
    points0, points1 = _points(source), _points(target)
    scores0, scores1 = source.scores.reshape(-1).tolist(), target.scores.reshape(-1).tolist()
    ring = without_border(source.scores).reshape(-1).tolist()
    pairs, consistency, described = [], [], []
    for number, (x, y) in enumerate(points0):
        u, v = x + SHIFT[0], y + SHIFT[1]
        if not ring[number] or not (0 <= u <= 63 and 0 <= v <= 47):
            continue
        distance, nearest = min((math.dist((u, v), point), k) for k, point in enumerate(points1))
        if distance < 4:
            pairs.append((distance, scores0[number], scores1[nearest]))
        consistency.append((float(_read(target.scores, u, v)) - scores0[number]) ** 2)
        described.append(((u, v), F.normalize(_read(source.descriptors, x, y), dim=0),
                          F.normalize(_read(target.descriptors, u, v), dim=0)))
    mean = sum(distance for distance, *_ in pairs) / len(pairs)
    peaks = [(s + t) * (distance - mean) for distance, s, t in pairs]
    triplets = []
    for place, own, there in described:
        others = [float((own - other).norm()) for where, _, other in described
                  if max(abs(where[0] - place[0]), abs(where[1] - place[1])) > box]
        triplets.append(max(float((own - there).norm()) - min(others) + 0.2, 0))
    return [distance for distance, *_ in pairs], peaks, consistency, triplets


def _mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize(("rules", "total", "box", "share"), [(CODE, _mean, 4, 1), (PAPER, sum, 8, 0.5)])
def test_paper_losses_reference(rules, total, box, share):
    """As the code computes them, and as the paper prints them."""
    source, target = _random_maps(1), _random_maps(2)
    losses = keypointnet.paper_losses(source, target, _shift_homography(*SHIFT), 8, 2.0, rules=rules)
    distances, peaks, consistency, triplets = _slow_paper_losses(source, target, box)
    assert len(distances) >= 3
    expected = {"location": total(distances), "score": share * (total(peaks) + 2 * total(consistency)),
                "descriptor": 2 * total(triplets)}
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-3), name
    assert float(losses["loss"]) == pytest.approx(sum(expected.values()), rel=1e-3)
    without = keypointnet.paper_losses(source, target, _shift_homography(*SHIFT), 8, 2.0, describe=False, rules=rules)
    assert "descriptor" not in without
    assert float(without["loss"]) == pytest.approx(expected["location"] + expected["score"], rel=1e-3)


@pytest.mark.parametrize("rules", [CODE, PAPER])
def test_images_of_a_batch_count_alike(rules):
    """The same pair twice gives the losses of once."""
    source, target = _random_maps(1), _random_maps(2)
    twice = [CellMaps(*(part.expand(2, -1, -1, -1) for part in maps)) for maps in (source, target)]
    once = keypointnet.paper_losses(source, target, _shift_homography(*SHIFT), 8, 2.0, rules=rules)
    both = keypointnet.paper_losses(*twice, _shift_homography(*SHIFT).expand(2, 3, 3), 8, 2.0, rules=rules)
    for name, value in once.items():
        torch.testing.assert_close(both[name], value)


@pytest.mark.parametrize(("box", "reach"), [(4.0, 5), (8.0, 9)])
def test_hardest_negative_lies_outside_the_box(monkeypatch, box, reach):
    """The descriptor next to the truth is the hardest one; it counts from more than `box` pixels away on."""
    codes = F.normalize(torch.randn(1, 30, 40), dim=1)  # one descriptor for each column of a 40-pixel wide map

    def loss(apart):
        points = torch.tensor([[[20.0, 1], [20.0 + apart, 1], *[[x, 1] for x in (0, 2, 4, 6, 8, 10)]]])
        maps = codes[:, :, None].repeat(1, 1, 3, 1).clone()
        maps[..., 20 + int(apart)] = 0.9 * maps[..., 20] + 0.1 * maps[..., 20 + int(apart)]
        usable = torch.ones(1, points.shape[1], dtype=torch.bool)
        rules = replace(CODE, safe_box=box)
        return float(keypointnet.descriptor_loss(maps, maps, points, points, usable, 3, 40, rules))

    assert loss(reach) == 0, "8 points are too few"
    monkeypatch.setattr(keypointnet, "LEAST_CELLS", 1)
    assert loss(reach - 1) == 0
    assert loss(reach) > 0


@pytest.mark.parametrize(("rules", "score_moves_points"), [(CODE, True), (PAPER, False)])
def test_paper_losses_gradients(rules, score_moves_points):
    """Location reaches offsets, score scores (and offsets in the code), the descriptor loss descriptors alone."""
    source, target = (CellMaps(*(part.clone().requires_grad_() for part in _random_maps(seed))) for seed in (1, 2))
    losses = keypointnet.paper_losses(source, target, torch.eye(3)[None], 8, 2.0, rules=rules)
    flows = {
        name: [_reached(losses[name], part) for part in source] for name in ("location", "score", "descriptor")
    }
    assert flows == {"location": [False, True, False], "score": [True, score_moves_points, False],
                     "descriptor": [False, False, True]}


def _reached(loss, part):
    gradient, = torch.autograd.grad(loss, part, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.abs().sum() > 0)


def test_paper_losses_without_any_association_are_finite():
    maps = CellMaps(*(part.requires_grad_() for part in _random_maps(1)))
    losses = keypointnet.paper_losses(maps, _random_maps(2), _shift_homography(1e4, 0), 8, 2.0)
    losses["loss"].backward()
    assert losses["loss"].item() == 0
    assert all(torch.isfinite(part.grad).all() for part in maps)


def test_cell_points_are_the_papers():
    offsets = torch.zeros(1, 2, 2, 3)
    offsets[0, :, 0, 1], offsets[0, :, 1, 2] = torch.tensor([1.0, -0.25]), torch.tensor([1.0, -0.5])
    points = keypointnet.cell_points(offsets, 8, 2.0)
    assert points[0, 0].tolist() == [3.5, 3.5]
    assert points[0, 1].tolist() == [11.5 + 7, 3.5 - 1.75]
    assert points[0, 5].tolist() == [23, 11.5 - 3.5], "19.5 + 7 lies outside the image"
    assert keypointnet.cell_points(offsets, 8, 1.0)[0, 5].tolist() == [19.5 + 3.5, 11.5 - 1.75]


@pytest.mark.parametrize("pick", ["lowest", "highest"])
def test_matches_reference(monkeypatch, pick):
    """Ten cells of each view by score, their nearest descriptors, and who is right, one by one."""
    monkeypatch.setattr(outliers, "POINTS", 10)
    source, other = (_random_maps(seed)._replace(scores=torch.rand(1, 1, 6, 8)) for seed in (1, 2))
    target = source._replace(scores=(source.scores + 0.2 * other.scores), offsets=source.offsets + 0.3 * other.offsets)
    ranked = [np.argsort(maps.scores.reshape(-1).numpy()) for maps in (source, target)]
    chosen = [order[:10] if pick == "lowest" else order[-10:] for order in ranked]
    points0, points1 = ([_points(maps)[k] for k in cells] for maps, cells in zip((source, target), chosen))
    codes0, codes1 = ([F.normalize(_read(maps.descriptors, *point), dim=0) for point in points]
                      for maps, points in ((source, points0), (target, points1)))
    expected = set()
    for (x, y), code in zip(points0, codes0):
        distance, nearest = min((float((code - other).norm()), k) for k, other in enumerate(codes1))
        u, v = points1[nearest]
        label = 1.0 if math.dist((u, v), (x + 2, y - 1)) < 4 else -1.0
        expected.add((x / 31.5 - 1, y / 23.5 - 1, u / 31.5 - 1, v / 23.5 - 1, distance, label))
    assert len({row[-1] for row in expected}) == 2, "right ones and wrong ones"
    matches = outliers.match_cells(source, target, _shift_homography(2, -1), 8, 2.0, pick)
    found = np.column_stack([matches.features[0].T.numpy(), matches.labels[0].numpy()])
    np.testing.assert_allclose(found[found[:, 0].argsort()], np.array(sorted(expected)), atol=1e-4)


def test_matches_of_the_same_view_are_inliers_and_picks_differ():
    maps = _random_maps(1)
    same = outliers.match_cells(maps, maps, torch.eye(3)[None], 8, 2.0, "lowest")
    assert same.features.shape == (1, 5, 48), "all there are, not 300"
    assert (same.labels == 1).all()
    off = outliers.match_cells(maps, maps, _shift_homography(4.5, 0), 8, 2.0, "lowest")
    assert (off.labels == -1).all(), "their descriptors are the same, but they are 4.5 pixels off"
    scores = torch.tensor([[0.3, 0.1, 0.9, 0.5]])
    assert outliers.PICKS["lowest"](scores, 2).tolist() == [[1, 0]]
    assert outliers.PICKS["highest"](scores, 2).tolist() == [[2, 3]]
    drawn = {tuple(sorted(outliers.PICKS["random"](scores, 2)[0].tolist())) for _ in range(60)}
    assert drawn == {(i, j) for j in range(4) for i in range(j)}


@pytest.mark.parametrize("rules", [CODE, PAPER])
def test_outlier_loss_reference(rules):
    predicted = torch.randn(2, 12, requires_grad=True)
    labels = torch.where(torch.arange(24).reshape(2, 12) < 11, 1.0, -1.0)
    loss = outliers.outlier_loss(predicted, labels, rules)
    squares = [(p - y) ** 2 for p, y in zip(predicted.flatten().tolist(), labels.flatten().tolist())]
    assert loss.item() == pytest.approx(_mean(squares) if rules is CODE else sum(squares) / 2, rel=1e-5)
    labels[0, 0] = -1  # ten inliers are not enough
    loss = outliers.outlier_loss(predicted, labels, rules)
    gradient, = torch.autograd.grad(loss, predicted)
    assert loss.item() == 0
    assert gradient.abs().sum() == 0


def test_outlier_loss_reaches_points_and_descriptors():
    source, target = (CellMaps(*(part.clone().requires_grad_() for part in _random_maps(1))) for _ in range(2))
    target.descriptors.data += 0.3 * torch.randn_like(target.descriptors)
    network = IoNet()
    matches = outliers.match_cells(source, target, torch.eye(3)[None], 8, 2.0, "random")
    loss = outliers.outlier_loss(network(matches.features), matches.labels)
    assert loss.item() > 0
    for maps in (source, target):
        assert [_reached(loss, part) for part in maps] == [False, True, True]
    assert all(_reached(loss, weight) for name, weight in network.named_parameters() if name.startswith(("e", "leave")))
