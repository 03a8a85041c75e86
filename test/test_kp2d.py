"""KP2D's versions and switches, what a step of each trains, and our recipe for compact."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from kp_training import augment
from kp_training.data.pairs import GEOMETRIES, PairBatch, PairConfig
from kp_training.data.procedural import ProceduralImages
from kp_training.geometry.homography import Kp2dHomographies
from kp_training.methods.base import Context
from kp_training.methods.kp2d import NETWORKS, VERSIONS, Kp2d, Kp2dConfig
from kp_training.networks.compact import CompactNet
from kp_training.networks.ionet import WithOutliers
from kp_training.networks.keypointnet import KeyPointNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _run(network, *inputs):
    return network(*inputs)


def _reached(loss, part):
    gradient, = torch.autograd.grad(loss, part, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.abs().sum() > 0)


def _batch(method, count=2):
    images = ProceduralImages(3, size=(96, 128))
    context = Context(images, 0, torch.device("cpu"), False, Path(os.devnull), lambda name: None, count)
    pairs = method.stages()[0].dataset(context)
    return default_collate([pairs[number] for number in range(count)])


@pytest.mark.parametrize("settings", [
    {"version": "v0"}, {"version": "v3"}, {"version": "v4"}, {"network": "keypoint_resnet"},
    {"network": "compact"}, {"network": "compact", "objective": "paper"}, {"parity": "paper"},
    {"version": "v2", "outliers": "random"},
], ids=lambda settings: "-".join(settings.values()))
def test_a_step_reaches_every_weight(settings):
    method = Kp2d(Kp2dConfig(**settings, height=64, width=64))
    stage = method.stages()[0]
    network = stage.network().train()
    losses = stage.losses(_run, network, _batch(method))
    assert math.isfinite(losses["loss"].item())
    losses["loss"].backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert ("outlier" in losses) == isinstance(network, WithOutliers)


def test_only_outlier_rejection_trains_v3s_descriptors():
    """With many inliers IO-Net's loss counts, and v3's descriptors learn from nothing else."""
    for version in ("v3", "v4"):
        method = Kp2d(Kp2dConfig(version=version, height=64, width=64, dropout=0))
        stage = method.stages()[0]
        network = stage.network().train()
        view = torch.randint(0, 250, (1, 3, 64, 64), dtype=torch.uint8)
        labels, mask = torch.zeros(1, 64, 64, dtype=torch.uint8), torch.ones(1, 64, 64, dtype=torch.bool)
        pair = PairBatch(view, view + 5, torch.eye(3)[None], mask, mask, labels, labels)
        losses = stage.losses(_run, network, pair)
        describes = network.keypoints.describe[1].weight
        assert losses["inliers"].item() > 0.5
        assert _reached(losses["outlier"], describes)
        assert not _reached(losses["location"] + losses["score"], describes)
        parts = [losses[name] for name in ("location", "score", "descriptor", "outlier") if name in losses]
        assert losses["loss"].item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
        assert len(parts) == (3 if version == "v3" else 4)


def test_versions_are_table_1():
    methods = {version: Kp2d(Kp2dConfig(version=version)) for version in VERSIONS}
    networks = {version: method.stages()[0].network() for version, method in methods.items()}
    assert [method.decoding().parameters["cross_ratio"] for method in methods.values()] == [1, 2, 2, 2, 2]
    assert [network.stride for network in networks.values()] == [8, 8, 4, 4, 4]
    assert [isinstance(network, WithOutliers) for network in networks.values()] == [False, False, False, True, True]
    assert [method.version.descriptor_loss for method in methods.values()] == [*["triplet"] * 3, "none", "triplet"]
    assert Kp2d(Kp2dConfig()).variant == methods["v4"].variant == "v4-keypointnet-paper"
    deployed = methods["v4"].stages()[0].deployed(networks["v4"])
    assert isinstance(deployed, KeyPointNet), "IO-Net stays behind"


def test_switches_override_the_version_and_show_in_the_name():
    method = Kp2d(Kp2dConfig(version="v4", outliers="highest", cross_ratio=1.0, upsample="none", parity="paper"))
    assert method.version == replace(VERSIONS["v4"], outliers="highest", cross_ratio=1.0, upsample="none")
    assert method.variant == "v4-keypointnet-paper-upsample=none-outliers=highest-cross_ratio=1-parity=paper"
    assert Kp2d(Kp2dConfig(network="keypoint_resnet", version="v2")).variant == "v2-keypoint_resnet-paper"


def _dropouts(network):
    return {layer.p for layer in network.modules() if isinstance(layer, torch.nn.Dropout2d)}


def test_parity_chooses_dropout_light_and_warps():
    for parity, dropout, suffix in (("code", 0.2, ""), ("paper", 0.0, "_paper")):
        method = Kp2d(Kp2dConfig(parity=parity))
        pairs = method._pair_config()
        assert (pairs.style, pairs.geometry) == (f"kp2d{suffix}", f"kp2d{suffix}")
        assert _dropouts(method.stages()[0].network()) == {dropout}
    own = Kp2d(Kp2dConfig(parity="paper", style="kp2d_code", geometry="wide", dropout=0.1))
    assert (own._pair_config().style, own._pair_config().geometry) == ("kp2d_code", "wide")
    assert _dropouts(own.stages()[0].network()) == {0.1}


def test_styles_and_warps_of_code_and_paper():
    grey = np.full((64, 64, 3), 128, np.uint8)
    red = np.full((8, 8, 3), (40, 60, 200), np.uint8)
    for style, sigma, most in (("kp2d", 0.05, 0.05), ("kp2d_paper", 0.02, 0.2)):
        jitter, noise, _ = (effect for effect, _ in augment.STYLES[style])
        assert noise(grey, np.random.default_rng(0)).std() / 255 == pytest.approx(sigma, rel=0.05)
        turned = [_hue(jitter(red, np.random.default_rng(seed))) - _hue(red) for seed in range(200)]
        turned = [(turn + 0.5) % 1 - 0.5 for turn in turned]
        assert 0.8 * most < max(map(abs, turned)) < most + 0.02
    assert len(augment.STYLES["kp2d_code"]) == 2, "no jitter"
    assert GEOMETRIES["kp2d_paper"].keywords == {"scale": 0.2}
    for scale in (Kp2dHomographies().scale, 0.2):
        homographies = Kp2dHomographies(perspective=0, scale=scale, rotation=0)
        corners = [homographies.sample(np.random.default_rng(seed)) for seed in range(100)]
        sides = np.array([np.linalg.norm(corner[1] - corner[0]) for corner in corners]) / 1.4
        assert (sides.min(), sides.max()) == pytest.approx((1 - scale, 1 + scale))


def _hue(image):
    return float(np.median(cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[..., 0])) / 180


def test_defaults_follow_the_network():
    sizes = {name: (pairs.geometry, pairs.color, pairs.height, pairs.width)
             for name in NETWORKS for pairs in [Kp2d(Kp2dConfig(network=name))._pair_config()]}
    assert sizes == {"keypointnet": ("kp2d", "rgb", 240, 320), "keypoint_resnet": ("kp2d", "rgb", 256, 320),
                     "compact": ("wide", "gray", 192, 192)}
    for name, choice in NETWORKS.items():
        network = Kp2d(Kp2dConfig(network=name)).stages()[0].network()
        assert (network.size_multiple, network.color) == (choice.multiple, choice.color)


def test_our_recipe_for_compact_stays():
    """What models/kp2d_compact.md was trained with."""
    method = Kp2d(Kp2dConfig(network="compact"))
    stage = method.stages()[0]
    assert method.variant == "compact-dual_softmax"
    assert isinstance(stage.network(), CompactNet)
    assert stage.training == {"batch_size": 16, "learning_rate": 2e-3}
    assert method._pair_config() == PairConfig(stretch=1.3, hardness=1.5)
    assert method.config == Kp2dConfig(network="compact", temperature=0.07, safe_radius=4, corner_weight=6,
                                       agreement_weight=0.2, repeatability_weight=2, location_weight=1,
                                       reliability_weight=1)


@pytest.mark.parametrize(("settings", "message"), [
    ({"network": "huge"}, "unknown network 'huge'; choose one of: compact, keypoint_resnet, keypointnet"),
    ({"objective": "magic"}, "unknown objective"),
    ({"objective": "dual_softmax"}, "needs scores at full resolution"),
    ({"network": "compact", "height": 100}, "height=100: expected a multiple of 32"),
    ({"network": "keypoint_resnet", "height": 240}, "height=240: expected a multiple of 32"),
    ({"width": -8}, "width=-8: expected a multiple of 8"),
    ({"turn_share": 1.5}, r"turn_share=1.5.*shares from 0 to 1"),
    ({"temperature": 0.0}, r"temperature=0: expected more than 0"),
    ({"dropout": 1.0}, r"dropout=1: expected shares"),
    ({"cross_ratio": -1.0}, r"cross_ratio=-1: expected more than 0"),
    ({"version": "v5"}, "unknown version 'v5'; choose one of: v0, v1, v2, v3, v4"),
    ({"outliers": "best"}, "unknown outliers 'best'; choose one of: auto, highest, lowest, none, random"),
    ({"parity": "mine"}, "unknown parity 'mine'; choose one of: code, paper"),
    ({"network": "compact", "version": "v0"}, "version, .*do not apply to objective=dual_softmax"),
    ({"network": "compact", "parity": "paper"}, "do not apply to objective=dual_softmax"),
    ({"network": "keypoint_resnet", "upsample": "none"}, "upsample=none applies to network=keypointnet only"),
    ({"network": "compact", "objective": "paper", "cross_ratio": 1.0}, "does not apply to network=compact"),
    ({"descriptor_loss": "none", "outliers": "none"}, "leave descriptors untrained"),
])
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        Kp2d(Kp2dConfig(**settings))
