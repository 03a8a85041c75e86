"""SEDM: the heat map's loss, annealing, what each stage trains and what it leaves alone, and what is exported."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from posed_scenes import plane_scene

from kp_frontend.errors import InputError
from kp_training.data.labelled_views import LabelledViews
from kp_training.data.pairs import PairConfig
from kp_training.losses.heat_map import heat_map_loss
from kp_training.methods import find_method
from kp_training.methods.base import Context
from kp_training.methods.sedm import Sedm, SedmConfig
from kp_training.methods.sedm_networks import KINDS
from kp_training.networks.compact import CompactNet
from kp_training.networks.sedm import Describer, SedmDetector, SedmNet, keep_frozen, settle
from kp_training.networks.superpoint import Deployed, SuperPointNet, scores_of_cells

CPU = torch.device("cpu")
SMALL = SedmConfig(rounds=2, frame_height=96, frame_width=128, height=64, width=64, pair_height=64, pair_width=96,
                   fewest=1, least_overlap=0.05, most_overlap=1.0, least_angle=1.0)
SCENE = plane_scene(count=3, step=0.2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _run(network, *inputs):
    return network(*inputs)


def _context(cache: Path, nets=None, items: int = 4, initial=lambda network: False) -> Context:
    return Context(images=None, seed=0, device=CPU, on_device=False, cache=cache, trained=(nets or {}).__getitem__,
                   items=items, scenes=lambda height, width: [SCENE], initial=initial)


def _step(stage, context, batch: int = 2):
    """The network after one step of a stage, and what it was before."""
    network = stage.network()
    stage.start(network, context)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    dataset = stage.dataset(context)
    items = torch.utils.data.default_collate([dataset[number] for number in range(batch)])
    network.train()
    losses = stage.losses(_run, network, items)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    losses["loss"].backward()
    torch.optim.Adam(weights, 1e-3).step()
    assert torch.isfinite(losses["loss"])
    return network.eval(), before


def _changed(network, before) -> set[str]:
    """Layers whose numbers, trained or counted, are others now."""
    return {name.split(".")[0] for name, value in network.state_dict().items()
            if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("network", "count"), [(SedmDetector, 942_083), (Describer, 991_552), (SedmNet, 1_933_635)])
def test_parameter_counts(network, count):
    """METHODS.md has the detector's; the describer is SuperPoint's 1,304,067 less the detector's head."""
    assert sum(value.numel() for value in network().parameters()) == count


def test_first_layer_sees_no_edge_at_the_border():
    """On a plain image the mirrored first layer is plain up to the border; with zeros it is not."""
    plain = torch.full((1, 1, 16, 16), 0.7)
    mirrored, zeros = SedmDetector().encoder[0][0](plain), SuperPointNet().encoder[0][0](plain)
    mirrored, zeros = mirrored.detach(), zeros.detach()
    assert float((mirrored - mirrored[..., 8:9, 8:9]).abs().max()) < 1e-6
    assert float((zeros - zeros[..., 8:9, 8:9]).abs().max()) > 1e-2


def test_heat_map_loss_reference():
    probabilities = torch.rand(2, 1, 6, 7) * 0.98 + 0.01
    labels = (torch.rand(2, 1, 6, 7) < 0.2).to(torch.uint8) * 90
    mask = torch.rand(2, 1, 6, 7) < 0.8
    expected = 0.0
    for where in np.ndindex(*labels.shape):
        if mask[where]:
            p = float(probabilities[where])
            expected -= math.log(p) if labels[where] else math.log(1 - p)
    assert float(heat_map_loss(probabilities.log(), labels, mask)) == pytest.approx(expected / 2, rel=1e-5)
    # Where the logarithm says 0, the gradient is still a number.
    certain = torch.zeros(1, 1, 1, 2, requires_grad=True)
    heat_map_loss(certain, torch.tensor([[[[0, 1]]]]), torch.ones(1, 1, 1, 2, dtype=torch.bool)).backward()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_scores(kind):
    labels, mask = torch.randint(0, 2, (1, 1, 24, 32)), torch.ones(1, 1, 24, 32, dtype=torch.bool)
    if kind == "superpoint":
        logits = torch.randn(1, 65, 3, 4)
        maps = KINDS[kind].log_probabilities(logits, labels, mask)
        torch.testing.assert_close(maps[0].exp(), scores_of_cells(logits))
        assert torch.equal(maps[1], labels)
        return
    logits = torch.randn(1, 1, 24, 32)
    seen = set()
    for _ in range(8):
        made, marks, _ = KINDS[kind].log_probabilities(logits, labels, mask)
        rows, columns = made.shape[2:]
        y, x = next((y, x) for y in range(8) for x in range(8)
                    if torch.equal(labels[..., y : y + rows, x : x + columns], marks))
        seen.add((y, x))
        cell = logits[0, 0, y : y + 8, x : x + 8].exp()
        torch.testing.assert_close(made[0, 0, :8, :8].exp(), cell / (1 + cell.sum()))
    assert len(seen) > 2, "the grid of cells moves"


def test_annealing():
    paper = SedmConfig(rounds=9, anneal_every=3)
    assert [paper.points_of(number) for number in range(1, 10)] == [2000] * 3 + [1700] * 3 + [1200] * 3
    assert [SedmConfig(points="50, 20").points_of(number) for number in (1, 2, 3, 7)] == [50, 20, 20, 20]


def test_labelled_views_move_points_and_what_is_known():
    """A white square on black, its corner a point: it is one in every view; what is not known is masked."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[40:, 60:] = 255
    image[:, 96:] = 128  # what is not known

    class Labels:
        def __call__(self, index):
            return np.array([[60, 40, 1.0]], np.float32)

        def known_cells(self, index, height, width):
            known = np.ones((height // 8, width // 8), bool)
            known[:, 12:] = False
            return known

    config = PairConfig("wide", "off", "gray", 64, 64, turn_share=0.5)
    views = LabelledViews([image], np.array([0]), Labels(), config, 3)
    found = 0
    for number in range(12):
        view = views[number]
        assert view.image.shape == (1, 64, 64)
        assert view.labels.shape == view.mask.shape == (64, 64)
        assert float((view.mask & (view.image[0] == 128)).float().mean()) < 0.01
        for y, x in torch.nonzero(view.labels).tolist():
            patch = view.image[0, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            assert int(patch.max()) - int(patch.min()) > 100, "the corner is there"
            found += bool(view.mask[y, x])
    assert found > 3
    again, other = views[2], LabelledViews([image], np.array([0]), Labels(), config, 4)[2]
    assert torch.equal(again.image, views[2].image)
    assert not torch.equal(again.image, other.image)
    whole = LabelledViews([image], np.array([0]), Labels(), replace(config, geometry="kp2d", width=128, height=96), 3)
    shares = [view.mask.float().mean() for view in (whole[number] for number in range(6))]
    assert 0.2 < float(np.mean(shares)) < 0.85


def test_settling_gives_norms_the_images_statistics():
    network, images = SedmDetector(), torch.rand(6, 1, 32, 32) * 0.2 + 0.5
    before = network.eval()(images).logits.detach()
    settle(network, images)
    after = network(images).logits
    assert not network.training
    assert network.encoder[0][1].momentum == 0.1
    assert float(before.std((0, 2, 3)).mean()) < 0.2, "all logits hang on their biases"
    torch.testing.assert_close(after.std((0, 2, 3)), torch.ones(65), rtol=0.4, atol=0.1)


def test_settling_does_not_hang_on_the_number_of_threads():
    """The first round's labels are found by these numbers, bit by bit."""
    before, images = torch.get_num_threads(), torch.rand(4, 1, 96, 128)
    settled = []
    try:
        for threads in (1, 2, 3):
            torch.manual_seed(0)
            network = SedmDetector()
            torch.set_num_threads(threads)
            settle(network, images)
            assert torch.get_num_threads() == threads
            settled.append(network.state_dict())
    finally:
        torch.set_num_threads(before)
    for other in settled[1:]:
        assert all(torch.equal(values, other[name]) for name, values in settled[0].items())


@pytest.mark.parametrize("name", KINDS)
def test_rounds_and_descriptors_train_and_export(name, tmp_path):
    """em1, em2 and describe, a step each: every stage begins where it should and changes only what it should."""
    method = Sedm(replace(SMALL, network=name))
    nets, stages = {}, method.stages()
    assert [stage.name for stage in stages] == ["em1", "em2", "describe"]
    assert [stage.describes for stage in stages] == [False, False, True]
    for stage in stages:
        nets[stage.name], before = _step(stage, _context(tmp_path, nets))
        previous = {"em2": "em1", "describe": "em2"}.get(stage.name)
        if previous:
            prefix = "detector." if "describer" in {key.split(".")[0] for key in before} else ""
            for key, value in nets[previous].state_dict().items():
                assert torch.equal(before[prefix + key], value), f"{stage.name}: {key} is not that of {previous}"
        changed = _changed(nets[stage.name], before)
        if name == "superpoint":
            assert changed == ({"describer"} if stage.name == "describe" else {"encoder", "detector"})
        else:
            assert "reliability" not in changed
            assert ("describe" in changed) == (stage.name == "describe")
            assert {"level_2", "score"} <= changed
    deployed = stages[-1].deployed(nets["describe"]).eval()
    file = tmp_path / "sedm.onnx"
    torch.onnx.export(deployed, (torch.rand(1, 1, 64, 64),), file, input_names=["image"],
                      output_names=list(method.decoding().outputs), opset_version=18, dynamo=False,
                      dynamic_axes={"image": {2: "h", 3: "w"}})
    image = torch.rand(1, 1, 96, 128)
    with torch.no_grad():
        expected = deployed(image)
    made = onnxruntime.InferenceSession(file).run(None, {"image": image.numpy()})
    assert made[0].shape == (1, 1, 96, 128)
    assert made[1].shape == (1, nets["describe"].descriptor_size, 12, 16)
    for ours, theirs in zip(expected, made):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4, rtol=1e-3)


def test_what_no_two_directions_saw_is_no_word_on_points(tmp_path):
    """describe: whether there is a point where the expectation knows nothing does not count, as in the rounds."""
    stage = Sedm(replace(SMALL, network="compact")).stages()[-1]
    dataset = stage.dataset(_context(tmp_path, {"em2": CompactNet().eval()}))
    batch = torch.utils.data.default_collate([dataset[0]])
    for view in "01":
        known, labels = torch.ones(1, 64, 96, dtype=torch.bool), torch.zeros(1, 64, 96, dtype=torch.uint8)
        known[..., 48:] = False
        batch = batch._replace(**{f"known{view}": known, f"labels{view}": labels})
    outputs = torch.randn(2, 1, 64, 96), torch.randn(2, 64, 8, 12), torch.randn(2, 1, 8, 12)

    def detector(**labels) -> float:
        torch.manual_seed(0)  # the grid of cells
        return float(stage.losses(lambda *_: outputs, CompactNet(), batch._replace(**labels))["detector"])

    for view in "01":
        unseen, seen = batch.labels0.clone(), batch.labels0.clone()
        unseen[0, 30, 70], seen[0, 30, 30] = 255, 255
        assert detector(**{f"labels{view}": unseen}) == detector() != detector(**{f"labels{view}": seen})


def test_cold_rounds_start_from_random_weights(tmp_path):
    stages = Sedm(replace(SMALL, warm=False)).stages()
    nets = {"em1": SedmDetector()}
    network = stages[1].network()
    before = network.encoder[3][0].weight.clone()
    stages[1].start(network, _context(tmp_path, nets))
    assert torch.equal(network.encoder[3][0].weight, before)


def test_given_descriptors(tmp_path):
    """A published file's descriptors are those of the last round's network, and stay what they are."""
    given = SuperPointNet("none")
    published = {theirs: given.state_dict()[f"{ours}.{kind}"] for theirs, ours, kind in _published_names()}
    file = tmp_path / "superpoint_v1.pth"
    torch.save(published, file)
    method = Sedm(replace(SMALL, rounds=1, descriptor_weights=str(file), norm="none"))
    (stage,) = method.stages()
    assert stage.describes
    network, before = _step(stage, _context(tmp_path))
    assert _changed(network, before) == {"detector"}
    image = torch.rand(1, 1, 32, 40)
    scores, descriptors = stage.deployed(network)(image)
    torch.testing.assert_close(descriptors, given.eval()(image).descriptors)
    torch.testing.assert_close(scores, scores_of_cells(network.detector(image).logits))
    wrong = Sedm(replace(SMALL, rounds=2, descriptor_weights=str(file), norm="prp")).stages()[0]
    with pytest.raises(InputError, match="use norm=none"):
        wrong.start(wrong.network(), _context(tmp_path))


def _published_names():
    from kp_training.networks.superpoint import PUBLISHED

    return [(f"{theirs}.{kind}", ours, kind) for theirs, ours in PUBLISHED.items() for kind in ("weight", "bias")]


def test_compact_keeps_the_descriptors_it_was_given(tmp_path):
    """trunk=false: one stage, that trains the score layers and nothing else, not even statistics of norms."""
    stages = Sedm(replace(SMALL, network="compact", rounds=1, trunk=False)).stages()
    weights = CompactNet().state_dict()

    def initial(network):
        network.load_state_dict(weights)
        return True

    network, before = _step(stages[0], _context(tmp_path, initial=initial))
    assert stages[0].describes
    assert len(stages) == 1
    assert _changed(network, before) == {"score_half", "score_quarter", "score_eighth", "score"}
    with pytest.raises(InputError, match="trunk=false keeps the layers of --init"):
        stages[0].start(stages[0].network(), _context(tmp_path))


def test_first_expectation_is_that_of_the_initial_weights(tmp_path):
    """--init: the first round's labels come from those weights; without it, from random ones, the same each time."""
    stage = Sedm(SMALL).stages()[0]
    weights = SedmDetector().state_dict()

    def initial(network):
        network.load_state_dict(weights)
        return True

    first, again = (stage.dataset(_context(tmp_path)).labels for _ in range(2))
    given = stage.dataset(_context(tmp_path, initial=initial)).labels
    np.testing.assert_array_equal(first(0), again(0))
    assert first(0).shape != given(0).shape or not np.array_equal(first(0), given(0))
    assert len(list(tmp_path.rglob("*.npz"))) == 2, "made once"


class _Silent(SedmDetector):
    def forward(self, image):
        maps = super().forward(image)
        return maps._replace(logits=maps.logits - 50 * (torch.arange(65) < 64)[:, None, None])


def test_vanished_points_are_those_of_the_round_before(tmp_path, caplog):
    """A network that finds nothing labels nothing; the next round learns the last labels that there were."""
    method = Sedm(replace(SMALL, rounds=2))
    context = _context(tmp_path, {"em1": _Silent().eval()})
    first, second = (stage.dataset(context).labels for stage in method.stages()[:2])
    assert "em2: the good points have vanished (0.0 of a frame, expected 1): learning those of em1" in caplog.text
    np.testing.assert_array_equal(first(1), second(1))
    strict = Sedm(replace(SMALL, fewest=100_000))
    with pytest.raises(InputError, match=r"em1: .* points of a frame are found again \(expected 100000\)"):
        strict.stages()[0].dataset(context)


def test_frames_follow_the_steps(tmp_path):
    """A short run labels few frames, a long one all."""
    scene = replace(SCENE, names=SCENE.names * 40, poses=np.tile(SCENE.poses, (40, 1, 1)),
                    intrinsics=np.tile(SCENE.intrinsics, (40, 1, 1)))
    counts = []
    for items, frames in ((4, 0), (90, 0), (10_000, 0), (10_000, 7)):
        context = replace(_context(tmp_path, items=items), scenes=lambda height, width: [scene])
        counts.append(sum(map(len, Sedm(replace(SMALL, frames=frames))._scenes(context))))
    assert counts == [24, 30, 120, 7]  # a view has a third of a frame's pixels


@pytest.mark.parametrize(("settings", "frames", "closest"), [
    ({}, (480, 640), 1), ({"network": "compact"}, (384, 512), 2), ({"network": "compact", "closest": 1}, (192, 256), 1),
    ({"network": "compact", "frame_height": 96, "frame_width": 128}, (96, 128), 2),
])
def test_frames_are_as_much_larger_as_views_are_closer(tmp_path, settings, frames, closest):
    """As large as they are labelled."""
    method, asked = Sedm(SedmConfig(fewest=1, least_overlap=0.05, most_overlap=1.0, least_angle=1.0, **settings)), []
    context = replace(_context(tmp_path), scenes=lambda *size: asked.append(size) or [SCENE])
    method._scenes(context)
    assert asked == [frames]
    context = replace(context, trained=lambda name: method.kind.detector("prp", True).eval())
    assert method.stages()[-1].dataset(context).config.closest == closest


def test_layers_that_are_frozen_keep_their_norms():
    network = SedmNet()
    network.detector.requires_grad_(False)
    network.train()
    keep_frozen(network)
    before = network.detector.encoder[0][1].running_mean.clone()
    network(torch.rand(2, 1, 16, 16))
    assert torch.equal(network.detector.encoder[0][1].running_mean, before)
    assert not torch.equal(network.describer.encoder[0][1].running_mean, before)


@pytest.mark.parametrize(("settings", "message"), [
    ({"network": "vgg"}, "sedm network"), ({"style": "x"}, "sedm style"), ({"points": "2000;3"}, "points=2000;3"),
    ({"rounds": 0}, "rounds=0"), ({"closest": 0.5}, "closest=0.5"), ({"height": 60}, "height=60"),
    ({"threshold": 1.0}, "threshold=1"),
    ({"network": "compact", "descriptor_weights": "x.pth"}, "compact describes by itself"),
    ({"trunk": False}, "trunk=false: expected network=compact"),
])
def test_settings_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Sedm(SedmConfig(**settings))


def test_paper():
    assert find_method("sedm") is Sedm
    method = Sedm(SedmConfig())
    first, *_, last = method.stages()
    assert (first.training["batch_size"], first.training["learning_rate"]) == (32, 1e-4)
    assert first.training["steps"] * 32 == 300 * 45_000
    assert last.name == "describe"
    assert last.training["batch_size"] == 2
    assert method.decoding().parameters == {"nms_radius": 3, "border": 4, "refine_radius": 0, "threshold": 0.025}
    expectation = method._expectation(1)
    assert (expectation.height, expectation.width, expectation.nms_radius, expectation.border) == (480, 640, 6, 4)
    sparse = Sedm(SedmConfig(descriptor_loss="sparse")).stages()[-1]
    assert sparse.training["batch_size"] == 8


def test_deployed_probabilities():
    network = SedmNet().eval()
    scores, descriptors = Deployed(network, KINDS["superpoint"].scores, 2)(torch.rand(1, 1, 16, 24))
    assert scores.shape == (1, 1, 16, 24)
    assert descriptors.shape == (1, 256, 2, 3)
    assert float(F.unfold(scores, 8, stride=8).sum(1).max()) < 1
