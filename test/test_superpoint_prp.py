"""SuperPoint-PrP's stages: who labels what for whom, the joint losses on posed pairs, two steps of each, export."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from posed_scenes import plane_scene, wall_scene
from torch.utils.data import default_collate

from kp_frontend.decoding import View, decode
from kp_frontend.engines import open_engine
from kp_frontend.errors import InputError
from kp_training.augment import STYLES
from kp_training.data.posed_pairs import PosedBatch, PosedPairConfig, PosedPairs
from kp_training.data.procedural import ProceduralImages
from kp_training.deployment import metadata_of
from kp_training.export.onnx import export_onnx
from kp_training.losses.superpoint import DESCRIPTOR_LOSSES, cell_centres, detector_loss
from kp_training.methods import find_method
from kp_training.methods.base import Context
from kp_training.methods.superpoint import KINDS
from kp_training.methods.superpoint_prp import SuperPointPrp, SuperPointPrpConfig

TINY = SuperPointPrpConfig(height=64, width=96, round_height=64, round_width=96, adapt_height=64, adapt_width=96,
                           group=4, others=2, warps=2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _run(network, *inputs):
    return network(*inputs)


@functools.cache
def _scenes():
    return [plane_scene(6, 72, 96), wall_scene(5, 72, 96)]


def _context(trained=None, items: int = 4, cache: Path = Path("nowhere"), scenes=None) -> Context:
    return Context(ProceduralImages(6, (96, 128)), 3, torch.device("cpu"), False, cache, (trained or {}).__getitem__,
                   items, lambda height, width: scenes or _scenes())


def _pair_batch(height: int = 64, width: int = 96) -> PosedBatch:
    points = np.array([[x, y, 1.0] for x in range(10, 90, 20) for y in range(10, 70, 20)], np.float32)
    config = PosedPairConfig(choice="offset", least_offset=1, most_offset=2, style="prp", height=height, width=width)
    pairs = PosedPairs(_scenes(), config, 1, lambda index: points)
    return default_collate([pairs[0], pairs[1]])


def test_stages_and_the_papers_numbers():
    stages = SuperPointPrp(SuperPointPrpConfig()).stages()
    assert [stage.name for stage in stages] == ["magicpoint", "round1", "round2", "joint"]
    assert [stage.describes for stage in stages] == [False, False, False, True]
    assert all(stage.start is None for stage in stages), "the joint network starts from scratch"
    assert [stage.training["steps"] for stage in stages] == [200_000, 30_000, 30_000, 300_000]
    assert [stage.training["learning_rate"] for stage in stages] == [1e-3, 1e-3, 1e-3, 1e-4]
    assert [2 * stage.training["batch_size"] for stage in stages[1:]] == [32, 32, 4], "pairs of images"
    counts = [sum(value.numel() for value in stage.network().parameters()) for stage in stages]
    assert counts == [942_083] * 3 + [1_304_067]
    loss = DESCRIPTOR_LOSSES["prp"]
    assert (loss.positive, loss.weight, loss.near, loss.normalise) == (0.6, 3e4, 3.5, True)
    assert find_method("superpoint_prp") is SuperPointPrp
    names = [effect.func.__name__ for effect, _ in STYLES["prp"]]
    assert names == ["shade", "brightness", "contrast", "streak", "sensor_noise"]
    assert [stage.name for stage in SuperPointPrp(SuperPointPrpConfig(rounds=0)).stages()] == ["magicpoint", "joint"]


def test_sizes():
    method = SuperPointPrp(SuperPointPrpConfig())
    assert (method.views, method.round_views) == ((480, 640), (240, 320))
    assert (method.frames, method.closest) == (method.views, 1)
    asked = []

    def scenes(height, width):
        asked.append((height, width))
        raise InputError("enough")

    configs = (SuperPointPrpConfig(), SuperPointPrpConfig(height=96), SuperPointPrpConfig(network="compact"))
    for stage, config in itertools.product(range(1, 4), configs):
        method = SuperPointPrp(config)
        context = replace(_context({name: method.stages()[0].network() for name in ("magicpoint", "round1", "round2")}),
                          scenes=scenes)
        with pytest.raises(InputError, match="enough"):
            method.stages()[stage].dataset(context)
    assert asked == [(480, 640), (96, 640), (384, 512)] * 3, "of one size, so that they are rendered once"
    close = method._choice(_context().scenes(1, 1), (192, 256))
    assert (close.closest, close.height, close.width) == (2, 192, 256)


def test_how_many_frames_are_labelled():
    method = SuperPointPrp(SuperPointPrpConfig())
    assert method._labelled(60, method.views) == 60, "a frame for each pair of its size"
    assert method._labelled(480, method.round_views) == 120
    assert method._labelled(2, method.views) == 40
    limited = SuperPointPrp(SuperPointPrpConfig(adapt_limit=7))
    assert limited._labelled(10**6, limited.views) == 7
    shrunk = SuperPointPrp(SuperPointPrpConfig(adapt_height=240, adapt_width=320))
    assert shrunk._labelled(60, shrunk.views) == 240


@pytest.mark.parametrize("hyb", [False, True])
def test_each_stage_is_taught_by_the_one_before(tmp_path, hyb):
    method, asked = SuperPointPrp(replace(TINY, network="compact", hyb=hyb)), []
    stages = method.stages()

    def trained(name):
        asked.append(name)
        return stages[0].network().eval()

    datasets = [stage.dataset(replace(_context(items=1, cache=tmp_path), trained=trained)) for stage in stages[1:]]
    assert asked == ["magicpoint", "round1", "round2"]
    kinds = [type(dataset).__name__ for dataset in datasets]
    assert kinds == (["HomographyPairs", "HomographyPairs", "PosedPairs"] if hyb else ["PosedPairs"] * 3)
    assert {(dataset.config.height, dataset.config.width) for dataset in datasets} == {(64, 96)}


def test_a_teacher_in_place_of_the_stages_before_the_last(tmp_path):
    """It labels the frames of the only stage; a wrong file is said before any scene is rendered."""
    teacher, file = SuperPointPrp(TINY).stages()[-1].network().eval(), tmp_path / "teacher.ckpt"
    state = {f"network.{name}": values for name, values in teacher.state_dict().items()}
    torch.save({"kp_training": {}, "state_dict": state}, file)
    (joint,) = SuperPointPrp(replace(TINY, teacher=str(file), warm=True)).stages()
    ours, context = joint.dataset(_context(cache=tmp_path)), _context({"round2": teacher}, cache=tmp_path / "usual")
    usual = SuperPointPrp(TINY).stages()[-1].dataset(context)
    assert len(ours.points.points) > 0
    np.testing.assert_array_equal(ours.points.points, usual.points.points)
    assert ours.config == usual.config
    module = joint.network()
    joint.start(module, _context())
    assert torch.equal(module.descriptor[1][0].weight, teacher.descriptor[1][0].weight)

    def scenes(height, width):
        raise AssertionError("rendered")

    (joint,) = SuperPointPrp(replace(TINY, teacher=str(tmp_path / "nowhere.ckpt"))).stages()
    with pytest.raises(InputError, match=r"no weight file .*nowhere.ckpt"):
        joint.dataset(replace(_context(), scenes=scenes))


def test_pairs_have_the_labels_of_their_own_frames(tmp_path):
    """A frame's labels are where the teacher found something in it, whichever view it is."""
    method = SuperPointPrp(replace(TINY, style="off", adapt_fewest=0))
    stage, teacher = method.stages()[1], method.stages()[0].network().eval()
    pairs = stage.dataset(_context({"magicpoint": teacher}, 4, tmp_path, [_scenes()[0]]))
    labels = pairs.points
    assert pairs.config.choice == "offset"
    for number in range(3):
        pair = pairs[number]
        matching = [sum(_draws(labels(index), view) for index in range(6)) for view in (pair.labels0, pair.labels1)]
        assert matching == [1, 1]
    unordered = [replace(scene, ordered=False) for scene in _scenes()]
    pairs = stage.dataset(_context({"magicpoint": teacher}, 4, tmp_path, unordered))
    assert pairs.config.choice == "overlap"


def _draws(points: np.ndarray, view: torch.Tensor) -> bool:
    """Whether `points` of a 72×96 frame, cut to 64×96 somewhere, are where the labels of `view` are."""
    drawn = view.nonzero().tolist()
    for cut in range(9):
        expected = {(int(y) - cut, int(x)) for x, y in np.rint(points[:, :2]) if 0 <= y - cut < 64}
        if drawn and expected == {tuple(place) for place in drawn}:
            return True
    return False


def _slow_descriptor_loss(batch, first, second, loss):
    """λ · mean over cells of view 0 that are not lost, and all of view 1, by loops."""
    warped, count, total = batch.warp()(cell_centres(first).expand(len(first), -1, -1)), 0, 0.0
    centres = cell_centres(second)
    for b in range(len(first)):
        rows, columns = (F.normalize(maps[b].flatten(1), dim=0).T for maps in (first, second))
        places, visible = warped.points[b], warped.visible[b]
        inner = ((places >= 0) & (places <= torch.tensor([95, 63]))).all(1)
        lost = ~warped.known[b] | (inner & ~visible)
        dots = (rows @ columns.T).clamp_min(0)
        dots[lost] = 0
        dots = dots / dots.norm(dim=1, keepdim=True).clamp_min(1e-12)
        dots = dots / dots.norm(dim=0, keepdim=True).clamp_min(1e-12)
        for i, j in np.ndindex(*dots.shape):
            if not lost[i]:
                near = math.dist(places[i].tolist(), centres[j].tolist()) <= 3.5
                total += 0.6 * max(0, 1 - float(dots[i, j])) if near else max(0, float(dots[i, j]) - 0.2)
                count += 1
    return 3e4 * total / count


def test_scenes_that_will_not_do_are_refused_before_the_first_stage():
    first = SuperPointPrp(TINY).stages()[0]
    for scene, message in ((plane_scene(4, depth=False), "have no depth"), (plane_scene(1), "no two of 1 frames")):
        with pytest.raises(InputError, match=message):
            first.dataset(_context(scenes=[scene]))


def test_joint_losses_on_posed_pairs_by_loops():
    """Eq. 1 with the paper's weights: both views' detector losses, and the descriptors' where cells correspond."""
    stage, batch = SuperPointPrp(TINY).stages()[-1], _pair_batch()
    network = stage.network()
    logits, descriptors = network(torch.cat([batch.image0, batch.image1]).float() / 255)
    losses = stage.losses(lambda *_: (logits, descriptors), network, batch)
    expected = sum(detector_loss(part, labels, mask) for part, labels, mask in
                   zip(logits.chunk(2), (batch.labels0, batch.labels1), (batch.mask0, batch.mask1)))
    torch.testing.assert_close(losses["detector"], expected, rtol=0.02, atol=0)  # of equal points a cell draws one
    with torch.no_grad():
        slow = _slow_descriptor_loss(batch, *descriptors.chunk(2), DESCRIPTOR_LOSSES["prp"])
    assert losses["descriptor"].item() == pytest.approx(slow, rel=1e-3)
    torch.testing.assert_close(losses["loss"], losses["detector"] + losses["descriptor"])


@pytest.mark.parametrize("network", KINDS)
def test_every_stage_trains_two_steps(network, tmp_path):
    """Each stage's own data, labelled by the stage before; what it trains moves and nothing else does."""
    method, trained = SuperPointPrp(replace(TINY, network=network)), {}
    for stage in method.stages():
        module = stage.network()
        dataset = stage.dataset(_context(trained, 4, tmp_path))
        before = {name: values.clone() for name, values in module.named_parameters()}
        optimizer = torch.optim.Adam([values for values in module.parameters() if values.requires_grad], 1e-3)
        for step in range(2):
            batch = default_collate([dataset[2 * step], dataset[2 * step + 1]])
            if stage.name == "magicpoint":  # at its own size
                batch = type(batch)(*(part[..., :64, :96].contiguous() for part in batch))
            loss = stage.losses(_run, module, batch)["loss"]
            assert torch.isfinite(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, values in module.named_parameters():
            assert torch.equal(values, before[name]) != values.requires_grad, name
        trained[stage.name] = module.eval()


@pytest.mark.parametrize("network", KINDS)
def test_exports_and_gives_keypoints(network, tmp_path):
    method = SuperPointPrp(SuperPointPrpConfig(network=network))
    stage = method.stages()[-1]
    module = stage.network().eval()
    metadata = metadata_of("superpoint_prp", method, module)
    images = [ProceduralImages(1, size)[0] for size in ((64, 96), (96, 64))]
    file = tmp_path / "model.onnx"
    figures = export_onnx(stage.deployed(module).eval(), method.decoding().outputs, metadata, file, images)
    assert figures["difference"] < 1e-3
    engine = open_engine(file, backend="onnxruntime")
    image = torch.rand(1, 1, 96, 128).numpy()
    features = decode(engine.run(image), engine.metadata, View(96, 128), 50)
    assert len(features.keypoints) > 5
    assert engine.metadata.variant == f"normalised-{network}{'-prp' if network == 'superpoint' else ''}-prp"


@pytest.mark.parametrize(("settings", "message"), [
    ({"network": "huge"}, "unknown superpoint_prp network 'huge'; choose one of: compact, superpoint"),
    ({"style": "neon"}, "unknown superpoint_prp style 'neon'; choose one of: .*prp"),
    ({"average": "median"}, "unknown average of projective adaptation 'median'; choose one of: normalised, patches"),
    ({"choice": "any"}, "unknown superpoint_prp choice 'any'; choose one of: auto, offset, overlap, rotation"),
    ({"descriptor_loss": "triplet"}, "unknown superpoint descriptor_loss 'triplet'; choose one of: dense, paper, prp"),
    ({"height": 100}, "height=100: expected a multiple of 8, of at least 64, or 0 for auto"),
    ({"network": "compact", "round_width": 72}, "round_width=72: expected a multiple of 32"),
    ({"rounds": -1}, "rounds=-1: expected at least 0"),
    ({"group": 0}, "group=0: expected at least 1"),
    ({"least_offset": 150}, "least_offset=150: expected at most most_offset=149"),
    ({"adapt_threshold": 0}, "adapt_threshold=0: expected a probability"),
])
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        SuperPointPrp(SuperPointPrpConfig(**settings))
