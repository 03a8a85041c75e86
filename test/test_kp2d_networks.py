"""KP2D's networks: layers as published, weight files of their authors, exports."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kp_frontend import load_extractor
from kp_frontend.decoding import View, decode
from kp_frontend.errors import InputError
from kp_frontend.extractors.learned import network_input
from kp_training.data.procedural import ProceduralImages
from kp_training.deployment import metadata_of
from kp_training.export import onnx as exporting
from kp_training.geometry.sampling import sample_aligned
from kp_training.losses.keypointnet import cell_points
from kp_training.methods.kp2d import Kp2d, Kp2dConfig
from kp_training.networks.ionet import IoNet, WithOutliers
from kp_training.networks.keypoint_resnet import KeypointResnet
from kp_training.networks.keypointnet import KeyPointNet, without_border


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _count(*modules):
    return sum(value.numel() for module in modules for value in module.parameters())


def test_parameter_counts():
    """METHODS.md section 1; ResNet18 without its classifier has 11,176,512."""
    network = KeyPointNet()
    stages = (network.stage1, network.stage2, network.stage3, network.stage4)
    parts = [_count(*stages), _count(network.score), _count(network.location), _count(network.widen, network.describe)]
    assert parts == [1_173_216, 592_641, 594_946, 2_951_424]
    assert _count(network) == sum(parts) == 5_312_227
    assert _count(KeyPointNet(upsample=False)) == 4_131_555
    assert _count(IoNet()) == 135_169
    assert _count(KeypointResnet().encoder) == 11_176_512
    assert _count(KeypointResnet()) == 11_176_512 + 4_500_224 + 592_641 + 594_946 + 73_920


@pytest.mark.parametrize(("network", "descriptors"), [
    (KeyPointNet(), (256, 16, 24)), (KeyPointNet(upsample=False), (256, 8, 12)), (KeypointResnet(), (64, 32, 48)),
])
def test_maps(network, descriptors):
    maps = network.eval()(torch.rand(1, 3, 64, 96))
    assert maps.scores.shape == (1, 1, 8, 12)
    assert maps.offsets.shape == (1, 2, 8, 12)
    assert maps.descriptors.shape == (1, *descriptors)
    assert (network.descriptor_size, 64 // network.stride) == descriptors[:2]
    assert maps.offsets.abs().max() < 1
    inner = without_border(maps.scores) > 0
    assert inner.sum() == 6 * 10
    assert maps.scores[~inner].abs().max() == 0
    assert (maps.scores[inner] > 0).all()


def test_dropout_is_of_whole_channels_and_can_be_left_out():
    for network in (KeyPointNet, KeypointResnet):
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            first, again = (network(0.5).train()(image).descriptors for _ in range(2))
            assert not torch.equal(first, again)
            plain = network(0.0).train()
            assert torch.equal(plain(image).descriptors, plain(image).descriptors)


def _conv(state, name, inputs, outputs, size=3, bias=False):
    state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) / (inputs * size * size) ** 0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(outputs)


def _norm(state, name, channels):
    for part in ("weight", "bias", "running_mean"):
        state[f"{name}.{part}"] = torch.randn(channels) * 0.3 + (part == "weight")
    state[f"{name}.running_var"] = torch.rand(channels) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.randint(1, 10**6, ())


def _published_keypointnet():
    state = {}
    widths = {"1a": (3, 32), "1b": (32, 32), "2a": (32, 64), "2b": (64, 64), "3a": (64, 128), "3b": (128, 128),
              "4a": (128, 256), "4b": (256, 256), "Da": (256, 256), "Pa": (256, 256), "Fa": (256, 256),
              "Fb": (256, 512), "Faa": (256, 256)}
    for name, (inputs, outputs) in widths.items():
        _conv(state, f"conv{name}.0", inputs, outputs)
        _norm(state, f"conv{name}.1", outputs)
    for name, outputs in (("Db", 1), ("Pb", 2), ("Fbb", 256)):
        _conv(state, f"conv{name}", 256, outputs, bias=True)
    return state


def _published_resnet18(prefix=""):
    state = {}
    _conv(state, f"{prefix}conv1", 3, 64, 7)
    _norm(state, f"{prefix}bn1", 64)
    for level, (inputs, outputs) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
        for block in range(2):
            name = f"{prefix}layer{level}.{block}"
            _conv(state, f"{name}.conv1", outputs if block else inputs, outputs)
            _conv(state, f"{name}.conv2", outputs, outputs)
            _norm(state, f"{name}.bn1", outputs)
            _norm(state, f"{name}.bn2", outputs)
        if level > 1:
            _conv(state, f"{prefix}layer{level}.0.downsample.0", inputs, outputs, 1)
            _norm(state, f"{prefix}layer{level}.0.downsample.1", outputs)
    state[f"{prefix}fc.weight"], state[f"{prefix}fc.bias"] = torch.randn(1000, 512), torch.randn(1000)
    return state


def _published_keypoint_resnet():
    state = _published_resnet18("encoderK.rn.")
    for level, (below, skip, own) in {4: (512, 256, 256), 3: (256, 128, 256), 2: (256, 64, 128),
                                      1: (128, 64, 64)}.items():
        for step, inputs in ((0, below), (1, own + skip)):
            _conv(state, f"decoderK.upconv{level}_{step}.conv.0", inputs, own)
            _norm(state, f"decoderK.upconv{level}_{step}.conv.1", own)
    for name, inputs, outputs in (("score", 256, 1), ("loc", 256, 2), ("feat", 64, 64)):
        _conv(state, f"decoderK.{name}conv.0", inputs, inputs)
        _norm(state, f"decoderK.{name}conv.1", inputs)
        _conv(state, f"decoderK.{name}conv.4", inputs, outputs, bias=True)
    return state


class _Layers:
    """The published networks from a file's tensors, by their names there alone."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, x, name):
        part = functools.partial(lambda kind: self.state[f"{name}.{kind}"][None, :, None, None])
        normal = (x - part("running_mean")) / torch.sqrt(part("running_var") + 1e-5)
        return normal * part("weight") + part("bias")

    def unit(self, x, name):
        return F.leaky_relu(self.norm(self.conv(x, f"{name}.0"), f"{name}.1"), 0.01)

    def keypointnet(self, image, upsample):
        x = (image - 0.5) * 0.225
        for stage in "1234":
            x = self.unit(self.unit(x, f"conv{stage}a"), f"conv{stage}b")
            if stage == "3":
                skip = x
            x = F.max_pool2d(x, 2) if stage != "4" else x
        described = self.unit(x, "convFa")
        if upsample:
            described = self.norm(self.conv(described, "convFb.0"), "convFb.1")
            described = torch.cat([F.pixel_shuffle(described, 2), skip], 1)
        return (torch.sigmoid(self.conv(self.unit(x, "convDa"), "convDb")),
                torch.tanh(self.conv(self.unit(x, "convPa"), "convPb")),
                self.conv(self.unit(described, "convFaa"), "convFbb"))

    def resnet18(self, image, prefix):
        x = F.relu(self.norm(self.conv(image, f"{prefix}conv1", 2), f"{prefix}bn1"))
        maps = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for level in range(1, 5):
            for block in range(2):
                name, stride = f"{prefix}layer{level}.{block}", 2 if level > 1 and block == 0 else 1
                shortcut = x
                if stride == 2:
                    shortcut = self.norm(self.conv(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
                x = F.relu(self.norm(self.conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                x = F.relu(self.norm(self.conv(x, f"{name}.conv2"), f"{name}.bn2") + shortcut)
            maps.append(x)
        return maps

    def head(self, x, name):
        x = F.pad(self.unit(x, f"decoderK.{name}conv"), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, *(self.state[f"decoderK.{name}conv.4.{part}"] for part in ("weight", "bias")))

    def keypoint_resnet(self, image):
        *skips, x = self.resnet18((image - 0.5) * 0.225, "encoderK.rn.")
        levels = {}
        for level, skip in zip((4, 3, 2, 1), reversed(skips)):
            x = self.unit(x, f"decoderK.upconv{level}_0.conv").repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = levels[level] = self.unit(torch.cat([x, skip], 1), f"decoderK.upconv{level}_1.conv")
        score, location = (self.head(levels[3], name) for name in ("score", "loc"))
        return torch.sigmoid(score), torch.tanh(location), self.head(x, "feat")


def _same_maps(network, expected, image):
    network.eval()
    with torch.no_grad():
        maps = network(image)
    torch.testing.assert_close(maps.scores, expected[0] * without_border(expected[0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.offsets, expected[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.descriptors, expected[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("upsample", [True, False])
def test_published_keypointnet(upsample):
    """Every tensor lands, and the maps are those of the published layers; V0's unused layer is left out."""
    state, network = _published_keypointnet(), KeyPointNet(upsample=upsample)
    renamed = network.from_published(state)
    network.load_state_dict(renamed)
    landed = {value.data_ptr() for value in renamed.values()}
    lost = [name for name, value in state.items() if value.data_ptr() not in landed]
    assert [name for name in lost if upsample or not name.startswith("convFb.")] == []
    image = torch.rand(1, 3, 48, 64)
    _same_maps(network, _Layers(state).keypointnet(image, upsample), image)


def test_published_keypoint_resnet():
    state, network = _published_keypoint_resnet(), KeypointResnet()
    renamed = network.from_published(state)
    network.load_state_dict(renamed)
    landed = {value.data_ptr() for value in renamed.values()}
    assert {name for name, value in state.items() if value.data_ptr() not in landed} == {
        "encoderK.rn.fc.weight", "encoderK.rn.fc.bias"}
    image = torch.rand(1, 3, 64, 96)
    _same_maps(network, _Layers(state).keypoint_resnet(image), image)


def test_torchvisions_resnet18_goes_into_the_encoder():
    """Also as older files have it, without the counts of batches."""
    state, network = _published_resnet18(), KeypointResnet()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    before = network.score[1].weight.clone()
    network.load_state_dict(network.from_published(state))
    assert torch.equal(network.score[1].weight, before)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network.encoder.eval()(image), _Layers(state).resnet18(image, "")):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_published_weights_pass_through_the_network_with_ionet():
    state, network = _published_keypointnet(), WithOutliers(KeyPointNet())
    before = network.outliers.leave.weight.clone()
    network.load_state_dict(network.from_published(state))
    assert torch.equal(network.keypoints.score[2].weight, state["convDb.weight"])
    assert torch.equal(network.outliers.leave.weight, before)


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state.pop("convPb.bias"), r"1 missing \(as convPb.bias\)"),
    (lambda state: state.update(head=torch.zeros(1)), r"1 foreign \(as head\)"),
    (lambda state: state.update({"conv1a.0.weight": torch.zeros(32, 1, 3, 3)}), r"of another shape \(as conv1a.0"),
])
def test_weights_of_another_layout_are_refused(change, message):
    state = _published_keypointnet()
    change(state)
    with pytest.raises(InputError, match=message):
        KeyPointNet().from_published(state)


@pytest.mark.parametrize(("network", "layout"), [
    (KeyPointNet(), "KP2D's KeypointNet"), (KeypointResnet(), "KP2D's KeypointResnet"),
])
def test_weights_of_another_network_are_refused(network, layout):
    with pytest.raises(InputError, match=f"not those of {layout}: .*missing.*foreign"):
        network.from_published({"backbone.weight": torch.zeros(1)})


def test_ionet_sees_each_match_and_the_others_of_its_image():
    """Its equation in training, by matrix products; the order of matches does not matter."""
    network = IoNet(blocks=1, channels=6).train()
    matches = torch.randn(2, 5, 9)

    def layer(part):
        return part.weight[..., 0], 0 if part.bias is None else part.bias[:, None]

    def over(x, dims):
        return (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, unbiased=False, keepdim=True) + 1e-5)

    weight, _ = layer(network.enter[0])
    x = entered = F.relu(over(weight @ matches, (0, 2)))
    for mix in network.blocks[0].mix:
        weight, bias = layer(mix)
        x = F.relu(over(over(weight @ x + bias, (2,)), (0, 2)))
    weight, bias = layer(network.leave)
    expected = (weight @ (x + entered) + bias)[:, 0]
    torch.testing.assert_close(network(matches), expected, atol=1e-4, rtol=1e-4)
    order = torch.randperm(9)
    torch.testing.assert_close(network(matches[..., order]), expected[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [
    {"version": "v0"}, {"version": "v4"}, {"network": "keypoint_resnet"}, {"network": "compact"},
    {"network": "compact", "objective": "paper"},
], ids=lambda settings: "-".join(settings.values()))
def test_export_at_two_sizes_and_through_the_runtime(settings, tmp_path):
    """The file agrees with PyTorch at sizes it was not traced at, the extractor with the decoder on PyTorch's maps."""
    method = Kp2d(Kp2dConfig(**settings))
    stage = method.stages()[0]
    network = stage.network()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    module, metadata = stage.deployed(network).eval(), metadata_of("kp2d", method, network)
    images = [ProceduralImages(2)[0][:64, :128], ProceduralImages(2)[1][40:140, 60:150]]
    path = tmp_path / "model.onnx"
    outputs = method.decoding().outputs
    assert exporting.export_onnx(module, outputs, metadata, path, images)["difference"] < 1e-3
    extractor = load_extractor(str(path), top_k=100)
    for image in images:
        with torch.no_grad():
            maps = module(torch.from_numpy(network_input(image, metadata)))
        named = {name: value.numpy() for name, value in zip(outputs, maps)}
        expected, found = decode(named, metadata, View(*image.shape[:2]), 100), extractor.extract(image)
        assert len(found) == len(expected) > 15
        distances = np.linalg.norm(found.keypoints[:, None] - expected.keypoints, axis=2)
        near = distances.min(1) < 0.01  # scores that are almost equal may change places
        assert near.mean() > 0.95
        alike = (found.descriptors * expected.descriptors[distances.argmin(1)]).sum(1)[near]
        assert alike.min() > 0.999


@pytest.mark.parametrize("version", ["v0", "v4"])
def test_runtime_reads_maps_as_the_losses_do(version):
    """Positions and descriptors of the decoder are those that training computes with."""
    method = Kp2d(Kp2dConfig(version=version))
    network = method.stages()[0].network()
    keypoints = getattr(network, "keypoints", network).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps = keypoints(image)
    named = {name: value.numpy() for name, value in zip(method.decoding().outputs, maps)}
    features = decode(named, metadata_of("kp2d", method, network), View(64, 96), 1000)
    assert len(features) == 60, "the inner cells"
    points = cell_points(maps.offsets, 8, method.version.cross_ratio)
    distances, nearest = torch.cdist(torch.from_numpy(features.keypoints)[None].double(), points.double()).min(2)
    assert distances.max() < 1e-4
    described = F.normalize(sample_aligned(maps.descriptors, points, 64, 96), dim=-1)[0, nearest[0]]
    torch.testing.assert_close(torch.from_numpy(features.descriptors), described, atol=1e-3, rtol=1e-3)
