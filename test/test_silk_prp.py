"""SiLK-PrP: which pairs it learns from, what its settings change, and that a tiny network learns from two places."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning import losses_while_learning
from posed_scenes import plane_scene, wall_scene

from kp_frontend.errors import InputError
from kp_frontend.settings import read_settings
from kp_training.data.posed_pairs import PosedBatch
from kp_training.methods import find_method
from kp_training.methods.base import Context
from kp_training.methods.silk import PAPER_TRAINING
from kp_training.methods.silk_prp import SilkPrp, SilkPrpConfig, worth_a_step


def _method(**settings) -> SilkPrp:
    return SilkPrp(read_settings("silk_prp", SilkPrpConfig, settings))


@functools.cache
def _scenes():
    return plane_scene(4, 80, 96), wall_scene(4, 80, 96)


def _context(*scenes, device: str = "cpu", asked: list | None = None) -> Context:
    def rendered(*size):
        if asked is not None:
            asked.append(size)
        return scenes or _scenes()

    return Context(None, 0, torch.device(device), False, Path(os.devnull), None, 1, rendered)


def _batch(method: SilkPrp, count: int = 1, *scenes) -> PosedBatch:
    dataset = method.stages()[0].dataset(_context(*scenes))
    return torch.utils.data.default_collate([dataset[number] for number in range(count)])


def _run(network, *inputs):
    return network(*inputs)


def test_the_papers_defaults():
    method = find_method("silk_prp")(SilkPrpConfig())
    stage, = method.stages()
    assert stage.training is PAPER_TRAINING
    assert [stage.training[name] for name in ("steps", "batch_size", "learning_rate")] == [100_000, 1, 1e-4]
    assert method.variant == "unpadded-64"
    config = stage.dataset(_context(device="cuda")).config
    assert (config.choice, config.least_offset, config.most_offset) == ("offset", 70, 149)
    assert (config.height, config.width, config.style, config.view_share) == (480, 640, "silk", 0)


def test_aug():
    method = _method(aug="true")
    config = method.stages()[0].dataset(_context()).config
    assert (config.view_share, config.zoom_low, config.zoom_high, config.roll) == (0.7, 0.7, 1.3, 90)
    assert method.variant == "unpadded-64-aug"


@pytest.mark.parametrize(("settings", "device", "size", "closest"), [
    ({}, "cuda", (480, 640), 1), ({}, "cpu", (240, 320), 1), ({"channels": 16}, "cuda", (240, 320), 1),
    ({"network": "compact"}, "cuda", (192, 256), 2), ({"height": 64, "width": 96}, "cuda", (64, 96), 1),
    ({"network": "compact", "closest": 1.5}, "cpu", (192, 256), 1.5),
])
def test_sizes(settings, device, size, closest):
    """Frames are rendered as much larger than the views as the views come closer."""
    asked = []
    config = _method(**settings).stages()[0].dataset(_context(device=device, asked=asked)).config
    assert asked == [(closest * size[0], closest * size[1])]
    assert (config.height, config.width, config.closest) == (*size, closest)


def test_frames_in_no_order_are_paired_by_overlap(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plane, wall = _scenes()
    dataset = _method().stages()[0].dataset
    assert dataset(_context(plane, replace(wall, ordered=False))).config.choice == "overlap"
    assert _method(choice="rotation").stages()[0].dataset(_context(plane)).config.choice == "rotation"


def test_scenes_need_depth():
    scene = plane_scene(3, 48, 64, depth=False)
    with pytest.raises(InputError, match=r"no depth \(as plane\)"):
        _batch(_method(), 1, scene)


SETTINGS = [
    {"channels": 4, "height": 40, "width": 56, "aug": "true"},
    {"channels": 4, "height": 32, "width": 40, "padding": "true", "recompute": "true", "positions": 50},
    {"network": "compact", "height": 64, "width": 64},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_of_training_reaches_every_weight(settings):
    method = _method(**settings)
    stage, = method.stages()
    torch.manual_seed(0)
    network = stage.network()
    found = stage.losses(_run, network, _batch(method, 2))
    found["loss"].backward()
    assert all(torch.isfinite(value.grad).all() for value in network.parameters())
    assert all(value.grad.any() for name, value in network.named_parameters() if not name.endswith("bias"))


def test_training_brings_matches():
    """A tiny network on one pair from two places: pixels learn to find themselves."""
    method = _method(channels=4, padding="true", height=32, width=40, style="off", positions=-1)
    history = losses_while_learning(method, _batch(method), _run)
    assert history[-1]["matched"] > 2 * history[0]["matched"] + 0.05
    assert history[-1]["descriptor"] < 0.8 * history[0]["descriptor"]


def test_poor_steps_count_nothing():
    assert [bool(worth_a_step(torch.tensor(matched), torch.tensor(precision)))
            for matched, precision in ((0.1, 0.25), (0.0, 0.0), (0.1, 0.2), (0.0, 1.0))] == [True, False, False, False]
    settings = {"channels": 4, "height": 32, "width": 40, "positions": 30}
    losses = []
    for skip in ("false", "true"):
        method = _method(**settings, skip_poor=skip)
        torch.manual_seed(0)
        network = method.stages()[0].network()
        losses.append(method.losses(_run, network, _batch(method)))
    assert losses[0]["loss"] > 0
    assert losses[0]["precision"] < 0.25
    assert losses[1]["loss"] == 0
    assert losses[1]["descriptor"] == losses[0]["descriptor"], "what is watched is as it is"


@pytest.mark.parametrize("settings", [
    {"choice": "nearest"}, {"least_offset": 0}, {"least_offset": 9, "most_offset": 8},
    {"network": "compact", "skip_poor": "true"}, {"height": 20}, {"network": "keypointnet"},
])
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError, match=f"{list(settings)[-1]}.*expected|choose"):
        _method(**settings)


def test_photographs_settings_are_none_of_it():
    with pytest.raises(InputError, match="unknown setting of silk_prp 'turn_share'"):
        _method(turn_share=0.5)
