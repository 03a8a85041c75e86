"""SiLK: network, coordinates, losses against slow references, and the method from pairs to a decoded export."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learning import losses_while_learning

from kp_frontend.decoding import View, decode
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata
from kp_frontend.settings import read_settings
from kp_training.data.pairs import PairBatch
from kp_training.geometry.sampling import warp_points
from kp_training.geometry.warps import HomographyWarp
from kp_training.losses import silk as losses
from kp_training.losses.detection import repeatability_loss, with_dustbin
from kp_training.methods.base import Context
from kp_training.methods.silk import COMPACT_TRAINING, PAPER_TRAINING, Silk, SilkConfig
from kp_training.networks.silk import DeployedSilk, SilkNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _lively(network: SilkNet) -> SilkNet:
    """With batch norms that do something in evaluation mode too."""
    for norm in (layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return network


def _pair_of_networks(width: int = 4) -> tuple[SilkNet, SilkNet]:
    """Unpadded and padded, with the same weights."""
    unpadded, padded = _lively(SilkNet(width)), SilkNet(width, padding=True)
    padded.load_state_dict(unpadded.state_dict())
    return unpadded.eval(), padded.eval()


@pytest.mark.parametrize("padding", [False, True])
def test_parameter_count(padding):
    assert sum(value.numel() for value in SilkNet(padding=padding).parameters()) == 942_147


def test_a_cell_of_the_unpadded_maps_is_the_pixel_margin_further():
    """Padding with zeros changes nothing further inside than the margin."""
    unpadded, padded = _pair_of_networks()
    image = torch.rand(2, 1, 30, 41)
    for small, whole in zip(unpadded(image), padded(image)):
        assert small.shape[-2:] == (12, 23)
        assert whole.shape[-2:] == (30, 41)
        torch.testing.assert_close(whole[..., 9:-9, 9:-9], small)


def test_descriptors_have_length_root_two():
    _, descriptors = SilkNet(4).eval()(torch.rand(1, 1, 32, 32))
    torch.testing.assert_close(descriptors.norm(dim=1), torch.full((1, 14, 14), 2**0.5))


def test_recomputing_changes_neither_gradients_nor_statistics():
    plain, thrifty = SilkNet(4, padding=True), SilkNet(4, padding=True, recompute=True)
    thrifty.load_state_dict(plain.state_dict())
    image = torch.rand(2, 1, 16, 24)
    for network in (plain, thrifty):
        logits, descriptors = network(image)
        (logits.square().mean() + descriptors[:, 0].mean()).backward()
    torch.testing.assert_close(dict(thrifty.state_dict()), dict(plain.state_dict()))
    for ours, theirs in zip(thrifty.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert {norm.momentum for norm in thrifty.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {0.1}


def test_deployed_maps_are_of_the_images_size():
    unpadded, _ = _pair_of_networks()
    image = torch.rand(1, 1, 32, 40)
    scores, descriptors = DeployedSilk(unpadded)(image)
    logits, inner = unpadded(image)
    assert scores.shape == (1, 1, 32, 40)
    torch.testing.assert_close(scores[..., 9:-9, 9:-9], logits.sigmoid())
    assert torch.count_nonzero(scores) == logits.numel()
    torch.testing.assert_close(descriptors[0, :, 0, 5], inner[0, :, 0, 0])
    torch.testing.assert_close(descriptors[0, :, 20, -1], inner[0, :, 11, -1])


def test_positions_and_cells():
    positions = losses.cell_positions(3, 4, 9)
    assert positions[0].tolist() == [9, 9]
    assert positions[6].tolist() == [11, 10]
    assert losses.nearest_cells(positions, 3, 4, 9).tolist() == list(range(12))
    outside = [[8.49, 9.0], [12.5, 9.0], [9.0, 11.5], [-1e6, -1e6]]
    points = torch.tensor([[9.49, 9.0], [9.5, 9.0], [8.5, 8.51], [12.49, 11.49], *outside])
    assert losses.nearest_cells(points, 3, 4, 9).tolist() == [0, 1, 0, 11, -1, -1, -1, -1]


def test_mutual_pairs():
    forward = torch.tensor([2, 2, -1, 0, 3])
    backward = torch.tensor([4, -1, 1, 4])
    first, second = losses.mutual_pairs(forward, backward)
    assert list(zip(first.tolist(), second.tolist())) == [(1, 2), (4, 3)]


def test_pairs_under_a_shift():
    """Cells 3 to the right and 1 up, less those that a mask or the map's edge takes away."""
    shift = torch.tensor([[1.0, 0, 3.2], [0, 1, -1.3], [0, 0, 1]])
    mask0, mask1 = torch.ones(2, 24, 26, dtype=torch.bool)
    mask0[9 + 4, 9 + 2] = False
    mask1[9 + 2, 9 + 7] = False
    warp = HomographyWarp(shift[None], mask0[None], mask1[None])
    (first, second), = losses.warp_pairs(warp, torch.zeros(1, 1, 6, 8), 9)
    expected = {(y * 8 + x, (y - 1) * 8 + x + 3) for y in range(6) for x in range(8) if y >= 1 and x + 3 < 8}
    expected -= {(4 * 8 + 2, 3 * 8 + 5), (3 * 8 + 4, 2 * 8 + 7)}
    assert set(zip(first.tolist(), second.tolist())) == expected


def test_pairs_under_a_homography_are_those_of_a_loop():
    homography = torch.tensor([[0.8, 0.2, 2.0], [-0.1, 0.9, 1.0], [0.004, 0.002, 1.0]])
    mask0, mask1 = torch.rand(2, 12, 12) > 0.2
    warp = HomographyWarp(homography[None], mask0[None], mask1[None])
    (first, second), = losses.warp_pairs(warp, torch.zeros(1, 1, 12, 12), 0)

    def cell(matrix, x, y):
        point = warp_points(matrix[None], torch.tensor([[[float(x), float(y)]]]))[0, 0]
        column, row = (int(np.floor(float(value) + 0.5)) for value in point)
        return (column, row) if 0 <= column < 12 and 0 <= row < 12 else None

    expected = []
    for y in range(12):
        for x in range(12):
            there = cell(homography, x, y)
            if there and cell(homography.inverse(), *there) == (x, y) and mask0[y, x] and mask1[there[::-1]]:
                expected.append((y * 12 + x, there[1] * 12 + there[0]))
    assert len(expected) > 20
    assert list(zip(first.tolist(), second.tolist())) == expected


def _maps(count: int = 2, size: int = 4, height: int = 3, width: int = 5):
    logits = tuple(torch.randn(count, 1, height, width).requires_grad_() for _ in range(2))
    vectors = F.normalize(torch.randn(2, count, size, height, width), dim=2) * 2**0.5
    return logits, tuple(view.requires_grad_() for view in vectors.unbind())


def test_losses_are_those_of_loops():
    logits, described = _maps()
    with torch.no_grad():  # 1 and 4 find each other; 9 finds 0, and 7 finds 3, which have found another
        first, second = (maps[0].flatten(1) for maps in described)
        second[:, 4] = first[:, 1]
        second[:, 0] = F.normalize(first[:, 9] + 0.1, dim=0) * 2**0.5
        first[:, 12] = second[:, 0]
        first[:, 3] = F.normalize(second[:, 7] + 0.1, dim=0) * 2**0.5
        second[:, 11] = first[:, 3]
    pairs = [(torch.tensor([1, 3, 9]), torch.tensor([4, 7, 0])), (torch.tensor([2]), torch.tensor([2]))]
    found = losses.silk_losses(logits, described, pairs, 0.1, block=40)
    descriptor, detector, won = [], [], []
    for number, matches in enumerate(pairs):
        similar = torch.einsum("di,dj->ij", *(maps[number].flatten(1) for maps in described)) / 0.1
        for i, j in zip(*(side.tolist() for side in matches)):
            descriptor.append(-similar[i].log_softmax(0)[j] - similar[:, j].log_softmax(0)[i])
            won.append(float(similar[i].argmax() == j and similar[:, j].argmax() == i))
            for maps, cell in ((logits[0], i), (logits[1], j)):
                share = torch.sigmoid(maps[number].flatten()[cell])
                detector.append(-torch.log(share if won[-1] else 1 - share))
    assert won[:3] == [1, 0, 0]
    torch.testing.assert_close(found["descriptor"], torch.stack(descriptor).mean())
    torch.testing.assert_close(found["detector"], torch.stack(detector).mean())
    torch.testing.assert_close(found["loss"], found["descriptor"] + found["detector"])
    assert found["matched"].item() == pytest.approx(sum(won) / len(won))


def test_gradients_reach_what_they_should():
    """The detector learns at the cells of pairs only, and from its own part alone."""
    logits, described = _maps(1)
    found = losses.silk_losses(logits, described, [(torch.tensor([1, 3]), torch.tensor([4, 0]))], 0.1)
    assert torch.autograd.grad(found["detector"], described, retain_graph=True, allow_unused=True) == (None, None)
    assert torch.autograd.grad(found["descriptor"], logits, retain_graph=True, allow_unused=True) == (None, None)
    gradients = torch.autograd.grad(found["loss"], (*logits, *described))
    assert torch.nonzero(gradients[0].flatten()).flatten().tolist() == [1, 3]
    assert torch.nonzero(gradients[1].flatten()).flatten().tolist() == [0, 4]
    assert all((gradient != 0).all() for gradient in gradients[2:])  # every cell is a rival


def test_no_pairs_give_zero_and_finite_gradients():
    logits, described = _maps(1)
    nothing = torch.zeros(0, dtype=torch.int64)
    found = losses.silk_losses(logits, described, [(nothing, nothing)], 0.1)
    found["loss"].backward()
    assert found["loss"].item() == 0
    assert not any(maps.grad.any() for maps in (*logits, *described))


def test_drawn_pairs_are_some_of_the_pairs():
    pairs = (torch.arange(50), torch.arange(50) + 100)
    first, second = losses.draw_pairs(pairs, 20)
    assert len(set(first.tolist())) == 20
    assert (second - first == 100).all()
    assert losses.draw_pairs(pairs, 0) is losses.draw_pairs(pairs, 50) is pairs


class Photos:
    """Two procedural photographs."""

    identity = "two"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(index).uniform(0, 255, (50, 60, 3)).astype(np.uint8)
        return cv2.GaussianBlur(cv2.resize(noise, (300, 250)), (0, 0), 1.5)


def _method(**settings) -> Silk:
    return Silk(read_settings("silk", SilkConfig, settings))


def _batch(method: Silk, count: int = 1) -> PairBatch:
    context = Context(Photos(), 0, torch.device("cpu"), False, Path(os.devnull), None, count)
    dataset = method.stages()[0].dataset(context)
    return torch.utils.data.default_collate([dataset[number] for number in range(count)])


def _run(network, *inputs):
    return network(*inputs)


def test_the_papers_defaults():
    method = _method()
    stage, = method.stages()
    assert stage.training is PAPER_TRAINING
    assert stage.network().margin == method.decoding().parameters["border"] == 9
    batch = _batch(method)
    assert batch.image0.shape == (1, 1, 164, 164)
    assert not batch.labels0.any()
    assert _batch(_method(padding="true")).image0.shape == (1, 1, 146, 146)


@pytest.mark.parametrize("settings", [
    {"channels": 4, "height": 40, "width": 56},
    {"channels": 4, "height": 32, "width": 32, "padding": "true", "recompute": "true", "positions": 50},
    {"network": "compact", "height": 64, "width": 64},
])
def test_a_step_of_training_reaches_every_weight(settings):
    method = _method(**settings)
    stage, = method.stages()
    torch.manual_seed(0)
    network = stage.network()
    found = stage.losses(_run, network, _batch(method, 2))
    found["loss"].backward()
    assert all(torch.isfinite(value.grad).all() for value in network.parameters())
    # What a batch norm follows at once needs no bias, and the last detecting layer of silk is one.
    assert all(value.grad.any() for name, value in network.named_parameters() if not name.endswith("bias"))


def test_training_brings_matches():
    """A tiny network on one easy pair: pixels learn to find themselves, the detector which ones do."""
    method = _method(channels=4, padding="true", height=32, width=32, style="off")
    history = losses_while_learning(method, _batch(method), _run)
    assert history[-1]["matched"] > 2 * history[0]["matched"] + 0.05
    assert history[-1]["descriptor"] < 0.8 * history[0]["descriptor"]


def test_half_of_the_positions_estimate_the_loss_of_all():
    every, half = (_method(channels=4, height=48, width=48, positions=count) for count in (-1, 60))
    torch.manual_seed(0)
    network, batch = every.stages()[0].network(), _batch(every)
    with torch.no_grad():
        truth = every.stages()[0].losses(_run, network, batch)["loss"].item()
        estimates = [half.stages()[0].losses(_run, network, batch)["loss"].item() for _ in range(60)]
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / 60**0.5)
    assert np.std(estimates) > 0


def test_compact_succeeds_only_where_descriptors_match():
    """The expected reward of drawing from both cells, by going through all pairs of draws."""
    ours, theirs = torch.randn(2, 1, 1, 2, 4) * 2
    cells = [with_dustbin(maps, 2)[0].flatten(1).T.exp() for maps in (ours, theirs)]
    reward = 0.0
    for cell, matched in enumerate((True, False)):
        for i in range(4):
            for j in range(4):
                reward += float(cells[0][cell, i] * cells[1][cell, j]) * (1 if i == j and matched else -0.3)
    loss = repeatability_loss(ours, theirs, torch.ones(1, 1, 2), 0.3, 2, torch.tensor([[[True, False]]]))
    assert loss.item() == pytest.approx(-reward / 2, rel=1e-4)


def test_compact_has_defaults_of_its_own():
    method = _method(network="compact")
    stage, = method.stages()
    assert stage.training is COMPACT_TRAINING
    assert stage.network().stride == 8
    batch = _batch(method)
    assert batch.image0.shape == (1, 1, 192, 192)
    assert batch.labels0.any()
    assert not _batch(_method(network="compact", corner_weight=0)).labels0.any()


@pytest.mark.parametrize("settings", [
    {"network": "keypointnet"}, {"height": 20}, {"network": "compact", "width": 100}, {"channels": 0},
    {"positions": -2}, {"temperature": 0}, {"turn_share": 2}, {"block": 0},
])
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError, match=f"{list(settings)[-1]}.*(expected|choose)"):
        _method(**settings)


@pytest.mark.parametrize("padding", [False, True])
def test_exported_maps_decode_to_keypoints_of_the_image(tmp_path, padding):
    """At two sizes, neither the one it was exported at; the network finds its own maxima at the right pixels."""
    from kp_training.export.onnx import export_onnx

    method = _method(channels=4, padding=padding)
    stage, decoding = method.stages()[0], method.decoding()
    network = _lively(stage.network()).eval()
    metadata = ModelMetadata("silk", method.variant, decoding.decoder, network.descriptor_size, network.stride,
                             size_multiple=network.size_multiple, decoder_parameters=decoding.parameters)
    images = [Photos()[0][:height, :width] for height, width in ((96, 64), (70, 101))]
    deployed = stage.deployed(network).eval()
    assert export_onnx(deployed, decoding.outputs, metadata, tmp_path / "silk.onnx", images)["difference"] < 1e-4

    pixels = torch.from_numpy(cv2.cvtColor(images[0], cv2.COLOR_BGR2GRAY))[None, None] / 255
    with torch.no_grad():
        outputs = dict(zip(decoding.outputs, (maps.numpy() for maps in deployed(pixels))))
        logits, descriptors = network(pixels)
    features = decode(outputs, metadata, View(96, 64), 50)
    best = int(logits.argmax())
    cell = np.array([best % logits.shape[-1], best // logits.shape[-1]])
    assert len(features) == 50
    assert features.keypoints[0].tolist() == (cell + network.margin).tolist()
    np.testing.assert_allclose(features.descriptors[0] * 2**0.5, descriptors[0, :, cell[1], cell[0]], atol=1e-5)
