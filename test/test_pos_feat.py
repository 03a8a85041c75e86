"""PoSFeat: networks, losses against slow references, the policy gradient against enumeration, the method."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from kp_frontend.errors import InputError
from kp_training.data.posed_pairs import PosedBatch
from kp_training.geometry.epipolar import EpipolarViews, epipolar_distances, fundamental_matrix
from kp_training.geometry.sampling import sample, sampled_lengths
from kp_training.losses import coarse_to_fine, line_to_window
from kp_training.losses.policy_gradient import (
    Drawn,
    Reward,
    accepting_policy,
    draw_actions,
    drawn_points,
    policy_gradient_loss,
    reinforce,
)
from kp_training.methods.base import Context
from kp_training.methods.pos_feat import PosFeat, PosFeatConfig, views_of
from kp_training.networks.pos_feat import DescriptionNet, DetectingCompact, DetectionNet, PosFeatNet
from kp_training.networks.resnet import Resnet50

HEIGHT, WIDTH, STRIDE = 48, 64, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _count(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _run(module, *inputs):
    return module(*inputs)


def _views(count: int = 1, height: int = HEIGHT, width: int = WIDTH) -> EpipolarViews:
    """Of a camera that moves and turns; its epipolar lines are slanted."""
    batch = _batch(count, height, width)
    return EpipolarViews(fundamental_matrix(batch.intrinsics0, batch.intrinsics1, batch.view1_from_view0),
                         batch.mask0, batch.mask1)


def _batch(count: int, height: int, width: int, channels: int = 3) -> PosedBatch:
    intrinsics = torch.tensor([[0.8 * width, 0, 0.5 * width], [0, 0.8 * width, 0.45 * height], [0, 0, 1]])
    pose = torch.eye(4)
    turn = torch.tensor(0.06)
    pose[:2, :2] = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    pose[:3, 3] = torch.tensor([0.3, 0.1, 0.02])
    images = torch.randint(256, (2, count, channels, height, width), dtype=torch.uint8)
    nothing, shown = torch.zeros(count, height, width), torch.ones(count, height, width, dtype=torch.bool)
    return PosedBatch(*images, nothing, nothing, intrinsics.expand(count, 3, 3), intrinsics.expand(count, 3, 3),
                      pose.expand(count, 4, 4), shown, shown, nothing.byte(), nothing.byte(), shown, shown)


def test_parameter_counts():
    assert _count(DescriptionNet()) == 20_377_536
    assert _count(DescriptionNet(coarse=True)) == 20_377_536 + 131_456
    assert _count(DetectionNet()) == 628_930
    assert _count(Resnet50()) == 8_543_296


def test_maps_are_of_the_sizes_said():
    network = PosFeatNet(coarse=True).eval()
    maps = network(torch.rand(2, 3, 48, 80))
    assert maps.scores.shape == (2, 1, 48, 80)
    assert maps.descriptors.shape == (2, 256, 12, 20)
    assert maps.levels.coarse.shape == (2, 128, 3, 5)
    assert maps.scores.min() >= 0
    halves = maps.descriptors.unflatten(1, (2, 128))
    torch.testing.assert_close(halves.norm(dim=2)[:, 0], torch.ones(2, 12, 20))


def test_scores_in_training_are_those_of_evaluation():
    """The recomputed pass gives the same scores, and gradients to all."""
    network, image = PosFeatNet(frozen=True), torch.rand(2, 3, 32, 48)
    trained, evaluated = network.train()(image).scores, network.eval()(image).scores
    torch.testing.assert_close(trained, evaluated)
    gradients = [torch.autograd.grad(scores.square().sum(), list(network.detection.parameters()), allow_unused=True)
                 for scores in (trained, evaluated)]
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_no_gradient_goes_from_scores_into_descriptors():
    network, image = PosFeatNet(), torch.rand(2, 3, 32, 48)
    network(image).scores.square().sum().backward()
    assert all(values.grad is None for part in (network.description.up1, network.description.fine)
               for values in part.parameters())
    assert all(values.grad is not None for values in network.detection.parameters())


def test_what_is_frozen_stays():
    network = PosFeatNet(frozen=True)  # the loop trains networks as they are built
    assert network.training
    assert not any(part.training for part in network.description.modules())
    assert all(part.training for part in network.detection.modules())
    kept = {name: values.clone() for name, values in network.description.state_dict().items()}
    network(torch.rand(1, 3, 32, 32)).scores.sum().backward()
    assert all(torch.equal(values, kept[name]) for name, values in network.description.state_dict().items())
    assert all(values.grad is None for values in network.description.parameters())

    compact = DetectingCompact()
    before = {name: values.clone() for name, values in compact.state_dict().items()}
    sum(values.sum() for values in compact(torch.rand(1, 1, 32, 32))).backward()
    changed = {name.split(".")[0] for name, values in compact.state_dict().items()
               if not torch.equal(values, before[name])}
    learning = {name.split(".")[0] for name, values in compact.named_parameters() if values.grad is not None}
    assert changed == {"score_half", "score_quarter", "score_eighth", "score"}
    assert learning == changed | {"reliability"}
    assert compact.training
    assert not any(part.training for part in compact.eval().modules())


def _torchvision_file() -> dict[str, torch.Tensor]:
    """Names and shapes of torchvision's file, as far as ours goes, and some of what it has beyond."""
    state = {name: torch.rand_like(values.float()) for name, values in Resnet50().state_dict().items()}
    return state | {"fc.weight": torch.zeros(1000, 2048), "layer4.0.conv1.weight": torch.zeros(512, 1024, 1, 1)}


def test_public_weights_of_the_backbone(tmp_path):
    state = _torchvision_file()
    for name in ("conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer2.3.bn3.bias",
                 "layer3.5.conv2.weight"):
        assert name in state
    assert state["layer3.0.conv2.weight"].shape == (256, 256, 3, 3)
    torch.save(state, tmp_path / "resnet50.pth")
    method = PosFeat(PosFeatConfig(backbone_weights=str(tmp_path / "resnet50.pth")))
    stage = method.stages()[0]
    network = stage.network()
    stage.start(network, _context())
    for name, values in network.description.backbone.state_dict().items():
        torch.testing.assert_close(values.float(), state[name].to(values.dtype).float())


@pytest.mark.parametrize("change", [{"layer9.weight": torch.zeros(1)}, {"conv1.weight": torch.zeros(1)}, None])
def test_other_files_are_refused(tmp_path, change):
    state = _torchvision_file()
    if change is None:
        del state["layer2.0.conv1.weight"]
    torch.save(state | (change or {}), tmp_path / "other.pth")
    stage = PosFeat(PosFeatConfig(backbone_weights=str(tmp_path / "other.pth"))).stages()[0]
    with pytest.raises(InputError, match="not those of torchvision's ResNet-50"):
        stage.start(stage.network(), _context())


def _bilinear(maps: torch.Tensor, x: float, y: float, stride: int) -> torch.Tensor:
    """A D×h×w map at a pixel, its four neighbours one by one, in double."""
    height, width = maps.shape[-2:]
    x, y = (min(max((value - (stride - 1) / 2) / stride, 0), size - 1) for value, size in ((x, width), (y, height)))
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    total = 0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        total = total + (1 - abs(x - column)) * (1 - abs(y - row)) * maps[:, row, column].double()
    return total


def _unit(maps: torch.Tensor, point, stride: int) -> torch.Tensor:
    descriptor = _bilinear(maps, float(point[0]), float(point[1]), stride)
    return descriptor / descriptor.norm()


def _softmax_mean(query, maps, stride, places):
    """Mean place and summed deviations under the softmax of 60·cosine."""
    similar = torch.stack([60 * query @ _unit(maps, place, stride) for place in places])
    weights = similar.softmax(0)[:, None]
    places = torch.tensor(places, dtype=torch.float64)
    mean = (weights * places).sum(0)
    return mean, (weights * (places - mean) ** 2).sum(0).clamp_min(1e-6).sqrt().sum()


def _window(centre, half, samples):
    """Places of a window that lie within the image, one by one."""
    rows, columns = samples
    places = [(float(centre[0]) + half[0] * (2 * column / (columns - 1) - 1),
               float(centre[1]) + half[1] * (2 * row / (rows - 1) - 1))
              for row in range(rows) for column in range(columns)]
    return [(x, y) for x, y in places if 0 <= x <= WIDTH - 1 and 0 <= y <= HEIGHT - 1]


def _crossings(line) -> list[tuple[float, float]]:
    """Where a line meets the image's border, side by side."""
    a, b, c = line
    right, bottom = WIDTH - 1, HEIGHT - 1
    found = [(x, -(a * x + c) / b) for x in (0, right)] + [(-(b * y + c) / a, y) for y in (0, bottom)]
    return [(x, y) for x, y in found if -1e-4 <= x <= right + 1e-4 and -1e-4 <= y <= bottom + 1e-4]


def _weighted(found: list[tuple[torch.Tensor, torch.Tensor]], farthest: float) -> torch.Tensor:
    """Mean of (distance, spread) up to `farthest`, weighted by 1 / spread."""
    counted = [(distance, 1 / float(spread.detach())) for distance, spread in found
               if float(distance.detach()) < farthest]
    mean = sum(weight for _, weight in counted) / len(counted)
    return sum(distance * weight / mean for distance, weight in counted) / len(counted)


def _reference_one_way(maps0, maps1, views, window, line_samples, farthest):
    """Line to window, point by point, with the draws of torch's generator in the same order."""
    points = torch.stack([torch.randint(16, (1, 12, 2))])[0, 0] + torch.tensor(
        [[16 * (k % 4), 16 * (k // 4)] for k in range(12)])
    jitter = 2 * torch.rand(1, 12, 2)[0] - 1
    half = (window * WIDTH / 2, window * HEIGHT / 2)
    found = []
    for point, shift in zip(points, jitter):
        line = views.fundamental[0].double() @ torch.tensor([*point.tolist(), 1.0], dtype=torch.float64)
        line = (line / line[:2].norm()).tolist()
        crossings = _crossings(line)
        if len(crossings) != 2 or math.dist(*crossings) < 1:
            continue
        (x0, y0), (x1, y1) = crossings
        candidates = [(x0 + (x1 - x0) * k / (line_samples - 1), y0 + (y1 - y0) * k / (line_samples - 1))
                      for k in range(line_samples)]
        query = _unit(maps0, point, STRIDE)
        best = max(candidates, key=lambda place: float((query @ _unit(maps1, place, STRIDE)).detach()))
        centre = [best[axis] + 0.707 * half[axis] * float(shift[axis]) for axis in (0, 1)]
        mean, spread = _softmax_mean(query, maps1, STRIDE, _window(centre, half, line_to_window.WINDOW_SAMPLES))
        found.append(((line[0] * mean[0] + line[1] * mean[1] + line[2]).abs(), spread))
    assert len(found) > 8
    return _weighted(found, farthest)


def _maps(*shapes) -> list[torch.Tensor]:
    """Smooth maps of 8 channels, so that a rounding changes no best candidate."""
    return [F.interpolate(torch.randn(1, 8, 4, 5), shape, mode="bilinear", align_corners=True).requires_grad_()
            for shape in shapes]


@pytest.mark.parametrize("farthest", [48.0, 0.5])
def test_line_to_window_point_by_point(farthest):
    views, maps = _views(), _maps((12, 16), (12, 16))
    torch.manual_seed(3)
    expected = _reference_one_way(maps[0][0], maps[1][0], views, 0.2, 20, farthest)
    expected = expected + _reference_one_way(maps[1][0], maps[0][0], views.inverse, 0.2, 20, farthest)
    torch.manual_seed(3)
    found = line_to_window.line_to_window_loss(*maps, STRIDE, views, 0.2, 20, farthest)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-3)
    ours, theirs = (torch.autograd.grad(loss, maps) for loss in (found["loss"], expected))
    for gradient, reference in zip(ours, theirs):
        torch.testing.assert_close(gradient, reference.float(), atol=2e-3 * float(reference.abs().max()), rtol=1e-2)
        assert gradient.any()


def test_what_the_masks_hide_is_neither_sought_nor_found():
    views = _views()
    hidden = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    hidden[:, :, 32:] = False
    maps = _maps((12, 16), (12, 16))
    one_way = line_to_window._one_way(*maps, STRIDE, EpipolarViews(views.fundamental, hidden, hidden), 0.1, 20, 48.0)
    assert one_way["counted"] <= 0.5
    for gradient in torch.autograd.grad(one_way["loss"], maps):
        assert not gradient[..., 9:].any()
        assert gradient[..., :8].any()
    nothing = line_to_window._one_way(*maps, STRIDE, EpipolarViews(views.fundamental, hidden & False, hidden), 0.1, 20,
                                      48.0)
    assert nothing["loss"].item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(nothing["loss"], maps))


def test_hidden_candidates_are_passed_by():
    maps = torch.zeros(1, 2, 2, 4)
    maps[0, 0], maps[0, 1] = torch.arange(4.0), 1
    candidates = torch.tensor([[0.0, 0], [1, 0], [2, 1], [3, 1]]).expand(1, 2, 4, 2)
    queries = F.normalize(torch.tensor([[[1.0, 0], [-1, 0.5]]]), dim=-1)
    mask = torch.ones(1, 2, 4, dtype=torch.bool)
    best, seen = line_to_window.best_on_line(queries, maps, 1, candidates, mask)
    assert best[0].tolist() == [[3, 1], [0, 0]]
    mask[0, 1, 3] = mask[0, 0, 0] = False
    best, seen = line_to_window.best_on_line(queries, maps, 1, candidates, mask)
    assert best[0].tolist() == [[2, 1], [1, 0]]
    assert seen.all()
    assert not line_to_window.best_on_line(queries, maps, 1, candidates, mask & False)[1].any()


def test_lengths_are_those_of_sampled_vectors():
    maps = _maps((5, 7))[0].detach()
    points = torch.rand(1, 200, 2) * torch.tensor([7 * STRIDE + 4, 5 * STRIDE + 4]) - 2  # some off the image
    points = torch.cat([points, torch.tensor([[[1.5, 1.5], [25.5, 17.5], [27, 19]]])], 1)  # centres of cells, the end
    lengths = torch.linalg.vector_norm(sample(maps, points, STRIDE), dim=-1)
    torch.testing.assert_close(sampled_lengths(maps, points, STRIDE), lengths)


def test_surer_points_weigh_more():
    found = line_to_window.Found(torch.zeros(1, 3, 2), torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[True] * 3]))
    distances = torch.tensor([[2.0, 8.0, 100.0]], requires_grad=True)
    parts = line_to_window.weighted_distance(distances, found, torch.tensor([[True] * 3]), 48.0)
    assert parts["loss"].item() == pytest.approx((2 * 1.5 + 8 * 0.5) / 2)
    assert parts["distance"] == 5
    assert parts["counted"].item() == pytest.approx(2 / 3)
    assert torch.autograd.grad(parts["loss"], distances)[0].tolist() == [[0.75, 0.25, 0]]


def test_free_descriptors_learn_to_find_themselves():
    """Maps that may be anything come to be found on their lines."""
    views, maps = _views(2), [torch.randn(2, 16, 12, 16).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.Adam(maps, 0.05)
    history = []
    for _ in range(40):
        found = line_to_window.line_to_window_loss(*maps, STRIDE, views, 0.3)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append(found["distance"].item())
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:5])


def _reference_coarse(query, maps, stride):
    places = [(stride * column + (stride - 1) / 2, stride * row + (stride - 1) / 2)
              for row in range(maps.shape[1]) for column in range(maps.shape[2])]
    return _softmax_mean(query, maps, stride, places)


def _reference_coarse_to_fine(levels0, levels1, views, window, cycle_weight, farthest):
    """One way of the search at both levels, point by point."""
    points = torch.randint(16, (1, 12, 2))[0] + torch.tensor([[16 * (k % 4), 16 * (k // 4)] for k in range(12)])
    jitter = 2 * torch.rand(1, 12, 2)[0] - 1
    half = (window * WIDTH / 2, window * HEIGHT / 2)
    (fine0, coarse0), (fine1, coarse1) = ([maps[0] for maps in levels[:2]] for levels in (levels0, levels1))
    parts = [[] for _ in range(4)]
    for point, shift in zip(points, jitter):
        line = views.fundamental[0].double() @ torch.tensor([*point.tolist(), 1.0], dtype=torch.float64)
        line = (line / line[:2].norm()).tolist()
        there_coarse, spread = _reference_coarse(_unit(coarse0, point, 16), coarse1, 16)
        parts[0].append(((line[0] * there_coarse[0] + line[1] * there_coarse[1] + line[2]).abs(), spread))
        places = _window(there_coarse.tolist(), half, coarse_to_fine.WINDOW_SAMPLES)
        there_fine, spread = _softmax_mean(_unit(fine0, point, STRIDE), fine1, STRIDE, places)
        parts[1].append(((line[0] * there_fine[0] + line[1] * there_fine[1] + line[2]).abs(), spread))
        back, spread = _reference_coarse(_unit(coarse1, there_coarse, 16), coarse0, 16)
        parts[2].append(((back - point).norm(), spread))
        centre = [float(point[axis]) + 0.707 * half[axis] * float(shift[axis]) for axis in (0, 1)]
        places = _window(centre, half, coarse_to_fine.WINDOW_SAMPLES)
        back, spread = _softmax_mean(_unit(fine1, there_fine, STRIDE), fine0, STRIDE, places)
        parts[3].append(((back - point).norm(), spread))
    losses = [_weighted(part, farthest) for part in parts]
    return losses[0] + losses[1] + cycle_weight * (losses[2] + losses[3])


def test_coarse_to_fine_point_by_point():
    views = _views()
    fine0, fine1, coarse0, coarse1 = maps = _maps((12, 16), (12, 16), (3, 4), (3, 4))
    levels = [coarse_to_fine.Levels(fine, coarse, STRIDE, 16) for fine, coarse in ((fine0, coarse0), (fine1, coarse1))]
    with torch.no_grad():
        torch.manual_seed(3)
        expected = _reference_coarse_to_fine(*levels, views, 0.3, 0.1, 48.0)
        expected = expected + _reference_coarse_to_fine(*levels[::-1], views.inverse, 0.3, 0.1, 48.0)
    torch.manual_seed(3)
    found = coarse_to_fine.coarse_to_fine_loss(*levels, views, 0.3)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-3)
    assert all(gradient.any() for gradient in torch.autograd.grad(found["loss"], maps))


def test_a_cell_draws_a_pixel_and_keeps_it():
    scores = torch.rand(1, 1, 4, 8) * 3
    policy = accepting_policy(scores, 4)
    for cell in range(2):
        values = scores[0, 0, :, 4 * cell : 4 * cell + 4].flatten()
        torch.testing.assert_close(policy[0, :, 0, cell].exp(), values.softmax(0) * torch.sigmoid(values))
    chances = policy[0, :, 0].exp()
    assert (chances.sum(0) >= 0.5).all(), "a softplus keeps half of what is drawn, or more"
    actions = draw_actions(policy.expand(20000, -1, -1, -1))[:, 0]
    for cell in range(2):
        shares = torch.bincount(actions[:, cell], minlength=17) / 20000
        expected = torch.cat([chances[:, cell], 1 - chances[:, cell].sum()[None]])
        torch.testing.assert_close(shares, expected, atol=0.012, rtol=0)


def test_points_of_actions():
    policy = torch.log_softmax(torch.randn(1, 4, 2, 3), 1).requires_grad_()
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    mask[0, 4, 1] = False
    actions = torch.tensor([[[0, 3, 4], [2, 1, 3]]])
    drawn = drawn_points(policy, actions, mask, 2, origin=(1, 1))
    assert drawn.points[0].tolist() == [[1, 1], [4, 2], [6, 2], [1, 4], [4, 3], [6, 4]]
    assert drawn.accepted[0].tolist() == [True, True, False, False, True, True]
    values = policy.detach()[0]
    expected = [values[0, 0, 0], values[3, 0, 1], 0, 0, values[1, 1, 1], values[3, 1, 2]]
    assert drawn.log_probability[0].tolist() == pytest.approx([float(value) for value in expected])


def _enumerated(policies, loss_of):
    """Mean over all actions, each weighing its probability, of the gradient of a loss."""
    totals = [torch.zeros_like(policy) for policy in policies]
    cells = [policy.shape[-1] for policy in policies]
    choices = policies[0].shape[1] + 1
    chances = [torch.cat([policy.exp(), 1 - policy.exp().sum(1, keepdim=True)], 1)[0, :, 0].detach()
               for policy in policies]
    for actions in itertools.product(range(choices), repeat=sum(cells)):
        sides = torch.tensor(actions[: cells[0]]), torch.tensor(actions[cells[0] :])
        weight = math.prod(float(chance.gather(0, side[None]).prod()) for chance, side in zip(chances, sides))
        loss = loss_of(sides)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, policies, allow_unused=True, retain_graph=True)
            for total, gradient in zip(totals, gradients):
                total += weight * (0 if gradient is None else gradient)
    return totals


def test_policy_gradient_is_that_of_the_enumerated_reward():
    """Two cells of four pixels in each view, all 625 draws; a match's chance and reward are any of its two points."""
    scores = [torch.randn(1, 1, 2, 4, dtype=torch.float64) for _ in range(2)]
    policies = [accepting_policy(score, 2).requires_grad_() for score in scores]
    chances = torch.rand(2, 4, 2, 4, dtype=torch.float64)  # cell and pixel of view 0, cell and pixel of view 1
    rewards = torch.where(torch.rand(2, 4, 2, 4) < 0.4, 1.0, -0.25).double()

    def loss_of(sides):
        kept = [[(cell, int(action)) for cell, action in enumerate(side) if action < 4] for side in sides]
        logs = [torch.stack([policy[0, action, 0, cell] for cell, action in points]) if points
                else torch.zeros(0, dtype=torch.float64) for policy, points in zip(policies, kept)]
        table = [torch.tensor([[float(values[a + b]) for b in kept[1]] for a in kept[0]], dtype=torch.float64)
                 .reshape(len(kept[0]), len(kept[1])) for values in (chances.log(), rewards)]
        return reinforce(table[0], *logs, table[1], penalty=0.03)

    probability = [policy.exp()[0, :, 0].T for policy in policies]  # cell, pixel
    expected = -torch.einsum("ca,db,cadb,cadb->", *probability, chances, rewards)
    expected = expected + 0.03 * sum(value.sum() for value in probability)
    truth = torch.autograd.grad(expected, policies)
    for ours, theirs in zip(_enumerated(policies, loss_of), truth):
        torch.testing.assert_close(ours, theirs)
        assert theirs.abs().max() > 0.01


def _single_cells():
    """A cell of 4×4 in each view; of 16 × 16 matches some fit the poses."""
    views = _views(1, 4, 4)
    maps = torch.randn(2, 1, 6, 2, 2)
    scores = [(2 * torch.randn(1, 1, 4, 4)).requires_grad_() for _ in range(2)]
    return views, maps, scores


def test_the_whole_loss_against_all_draws_of_one_cell():
    """With one point a view a match is certain, so that the gradient of the reward is exact: all 17² draws."""
    views, maps, scores = _single_cells()
    policies = [accepting_policy(score, 4) for score in scores]
    points = torch.tensor([[x, y] for y in range(4) for x in range(4)])[None].float()
    in1, in0 = epipolar_distances(views.fundamental, points, points)
    rewards = torch.where((in1 < 1) & (in0 < 1), 1.0, -0.25)[0]
    assert 0.1 < (rewards > 0).float().mean() < 0.9
    first, second = (policy.exp().flatten() for policy in policies)
    expected = -(first @ rewards @ second) + 0.02 * (first.sum() + second.sum())
    truth = torch.autograd.grad(expected, scores, retain_graph=True)

    def loss_of(sides):
        drawn = [drawn_points(policy, side[None, None], views.mask0, 4) for policy, side in zip(policies, sides)]
        return policy_gradient_loss(*maps, 2, *drawn, views, Reward(tolerance=1.0), 0.02, normalise=False)["loss"]

    ours = torch.autograd.grad(policies, scores, _enumerated(policies, loss_of))
    for gradient, reference in zip(ours, truth):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
        assert reference.abs().max() > 1e-3


def _drawn(points, chances) -> Drawn:
    points = torch.tensor(points, dtype=torch.float32)[None]
    return Drawn(points, torch.ones(points.shape[:2], dtype=torch.bool), chances)


def test_loss_of_given_points_by_hand():
    """Three points against two, match by match; both lines must be near, in views of different scale."""
    seen = _views(1)
    views = EpipolarViews(torch.diag(torch.tensor([1 / 3, 1 / 3, 1])) @ seen.fundamental, seen.mask0, seen.mask1)
    maps = [(1 + 0.2 * torch.randn(1, 6, 12, 16)).requires_grad_() for _ in range(2)]
    chances = [torch.randn(1, count).requires_grad_() for count in (3, 2)]
    sides = [[[10, 20], [30, 11], [50, 40]], [[36, 60], [50, 99]]]
    found = policy_gradient_loss(*maps, STRIDE, _drawn(sides[0], chances[0]), _drawn(sides[1], chances[1]), views,
                                 Reward(1.0, -0.5, 5.0), 0.1)
    matrix = views.fundamental[0].double()
    descriptors = [[_unit(side[0], point, STRIDE) for point in points] for side, points in zip(maps, sides)]
    similar = torch.stack([torch.stack([60 * a @ b for b in descriptors[1]]) for a in descriptors[0]])
    loss, rights, near0 = 0, [], []
    for i, j in itertools.product(range(3), range(2)):
        x0, x1 = (torch.tensor([*point, 1.0], dtype=torch.float64) for point in (sides[0][i], sides[1][j]))
        error = abs(x1 @ matrix @ x0)
        rights.append(max(error / (matrix @ x0)[:2].norm(), error / (matrix.T @ x1)[:2].norm()) < 5)
        near0.append(error / (matrix.T @ x1)[:2].norm() < 5)
        log_matching = similar[i].log_softmax(0)[j] + similar[:, j].log_softmax(0)[i]
        gain = (1.0 if rights[-1] else -0.5) * float(log_matching.exp().detach())
        loss = loss - gain * (log_matching + chances[0][0, i] + chances[1][0, j])
    assert 0 < sum(rights) < sum(near0)
    loss = (loss + 0.1 * (chances[0].sum() + chances[1].sum())) / 5
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-3, abs=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(value, [*maps, *chances]) for value in (found["loss"], loss))):
        torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-2)
    assert found["points"] == 2.5


def test_no_points_are_no_loss():
    views, maps, scores = _single_cells()
    policies = [accepting_policy(score, 4) for score in scores]
    for actions in ((16, 16), (16, 3)):
        drawn = [drawn_points(policy, torch.tensor([[[action]]]), views.mask0, 4)
                 for policy, action in zip(policies, actions)]
        found = policy_gradient_loss(*maps, 2, *drawn, views, penalty=0.0)
        assert found["loss"].item() == 0
        assert all(torch.isfinite(value) for value in found.values())


MODELS = {1: ("decoupled", "learned", "line_to_window"), 2: ("joint", "learned", "line_to_window"),
          3: ("decoupled", "sift", "line_to_window"), 4: ("decoupled", "sift", "coarse_to_fine")}


@pytest.mark.parametrize("number", MODELS)
def test_models_of_the_papers_table(number):
    method = PosFeat(PosFeatConfig(model=number))
    assert method.model == MODELS[number]
    names = [stage.name for stage in method.stages()]
    assert names == {1: ["describe", "detect"], 2: ["joint"], 3: ["describe"], 4: ["describe"]}[number]
    assert method.decoding().decoder == ("points" if number > 2 else "full")
    by_hand = PosFeat(PosFeatConfig(**dict(zip(("training", "detector", "description"), MODELS[number]))))
    assert by_hand.variant == method.variant


@pytest.mark.parametrize(("settings", "wrong"), [
    ({"model": 9}, "unknown model of pos_feat 9; choose one of: 1, 2, 3, 4"),
    ({"model": 6}, "model=6: models 5 to 8 are keypoints of one trained model with descriptors of another"),
    ({"training": "both"}, "unknown pos_feat training 'both'.*decoupled, joint"),
    ({"network": "huge"}, "unknown pos_feat network 'huge'"),
    ({"pairs": "offset"}, "unknown pos_feat pairs 'offset'.*overlap, rotation"),
    ({"model": 3, "training": "joint"}, "training=joint with detector=sift"),
    ({"network": "compact", "model": 4}, "coarse_to_fine and backbone_weights apply to network=posfeat only"),
    ({"network": "compact", "height": 240}, "height=240: expected a multiple of 32"),
    ({"width": 100}, "width=100: expected a multiple of 16"),
    ({"line_samples": 1}, "line_samples=1: expected at least 2"),
    ({"tolerance": 0.0}, "tolerance=0: expected more than 0"),
    ({"backbone_weights": "/nowhere/resnet50.pth"}, "no weight file"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, wrong):
    def begin():
        stage = PosFeat(PosFeatConfig(**settings)).stages()[0]
        stage.start(stage.network(), _context())

    with pytest.raises(InputError, match=wrong):
        begin()


def _context(**others) -> Context:
    values = {"images": None, "seed": 5, "device": torch.device("cpu"), "on_device": False, "cache": Path(os.devnull),
              "trained": lambda name: None, "items": 100}
    return Context(**values | others)


@pytest.mark.parametrize("settings", [
    {}, {"model": 2}, {"model": 4}, {"network": "compact"}, {"network": "compact", "training": "joint"},
])  # fmt: skip
def test_a_step_of_each_stage_reaches_what_it_trains(settings):
    method = PosFeat(PosFeatConfig(**settings))
    for stage in method.stages():
        network = stage.network().train()
        losses = stage.losses(_run, network, _batch(1, 64, 64, 1 if "network" in settings else 3))
        losses["loss"].backward()
        assert all(torch.isfinite(value) for value in losses.values())
        for name, values in network.named_parameters():
            assert (values.grad is not None) == values.requires_grad, name
        trained = {name.split(".")[0] for name, values in network.named_parameters() if values.requires_grad}
        expected = {"describe": {"description"}, "detect": {"detection"}, "joint": {"description", "detection"}}
        if method.config.network == "posfeat":
            assert trained == expected[stage.name]


def test_detection_starts_from_what_describes():
    method = PosFeat(PosFeatConfig(model=1))
    describe, detect = method.stages()
    first, second = describe.network(), detect.network()
    detect.start(second, _context(trained=lambda name: {"describe": first}[name]))
    for name, values in first.state_dict().items():
        assert torch.equal(values, second.state_dict()[name])


def test_training_numbers_are_the_codes():
    describe, detect = (stage.training for stage in PosFeat(PosFeatConfig()).stages())
    assert (describe["learning_rate"], describe["batch_size"], describe["steps"]) == (1e-4, 8, 100_000)
    assert (detect["learning_rate"], detect["batch_size"], detect["steps"], detect["optimizer"]) == (1e-3, 6, 5000,
                                                                                                   "sgd")
    assert (describe["drop_at"], detect["drop_at"], describe["drop_factor"]) == (0.9, 0.8, 0.1)


@pytest.mark.parametrize(("depth", "choice"), [(True, "overlap"), (False, "rotation")])
def test_pairs_are_views_of_scenes(depth, choice):
    from posed_scenes import plane_scene

    method = PosFeat(PosFeatConfig(height=64, width=96))
    sizes = []

    def scenes(height, width):
        sizes.append((height, width))
        return [plane_scene(count=5, depth=depth)]

    dataset = method.stages()[0].dataset(_context(scenes=scenes))
    assert (dataset.config.choice, dataset.config.aspect, dataset.config.color) == (choice, "stretch", "rgb")
    assert dataset.config.least_parallax > 0
    assert sizes == [(64, 96)]
    close = PosFeat(PosFeatConfig(height=64, width=96, network="compact")).stages()[0].dataset(_context(scenes=scenes))
    assert (sizes[1], close.config.closest) == ((128, 192), 2 if depth else 1)
    batch = default_collate([dataset[0], dataset[1]])
    assert batch.image0.shape == (2, 3, 64, 96)
    maps = torch.randn(2, 2, 8, 16, 24)
    assert line_to_window.line_to_window_loss(*maps, STRIDE, views_of(batch))["counted"] > 0.5


@pytest.mark.parametrize("settings", [{}, {"model": 4}, {"network": "compact"}, {"network": "compact", "model": 3}])
def test_export_at_two_sizes_and_through_the_runtime(tmp_path, settings):
    from kp_frontend import load_extractor
    from kp_training.deployment import metadata_of
    from kp_training.export.onnx import export_onnx

    method = PosFeat(PosFeatConfig(**settings))
    stage = method.stages()[-1]
    network = stage.network().eval()
    decoding = method.decoding()
    rng = np.random.default_rng(0)
    images = [np.kron(rng.integers(0, 256, (height, width, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
              for height, width in ((12, 16), (9, 21))]
    file = tmp_path / "model.onnx"
    figures = export_onnx(stage.deployed(network).eval(), decoding.outputs, metadata_of("pos_feat", method, network),
                          file, images, decoding.points)
    assert figures["difference"] < 1e-3
    features = load_extractor(str(file), top_k=50, backend="onnxruntime").extract(images[0])
    assert len(features) > 5
    assert features.descriptors.shape[1] == {"compact": 64}.get(method.config.network,
                                                               256 if method.coarse else 128)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("network", ["posfeat", "compact"])
def test_a_stage_that_only_describes_can_be_looked_at(network):
    """Its network has no detector, or one that is not trained yet: validation finds points all the same."""
    from kp_training.deployment import torch_extractor

    method = PosFeat(PosFeatConfig(network=network))
    stage = method.stages()[0]
    image = np.zeros((96, 128, 3), np.uint8)
    image[30:60, 40:90] = 200
    features = torch_extractor("pos_feat", method, stage, stage.network().eval(), torch.device("cpu"), 4).extract(image)
    assert len(features) == 4
    if network == "posfeat":
        corners = np.array([[39.5, 29.5], [89.5, 29.5], [39.5, 59.5], [89.5, 59.5]])
        apart = np.linalg.norm(features.keypoints[:, None] - corners, axis=2)
        assert (apart.min(0) < 1.6).all()
