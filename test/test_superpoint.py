"""SuperPoint's networks, losses and stages: layer counts, hand cases, slow references, where gradients flow."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from kp_frontend.errors import InputError
from kp_training.data.procedural import ProceduralImages
from kp_training.geometry.warps import HomographyWarp
from kp_training.losses import superpoint as losses
from kp_training.methods import find_method
from kp_training.methods.base import Context
from kp_training.methods.superpoint import KINDS, SuperPoint, SuperPointConfig
from kp_training.networks.superpoint import PUBLISHED, Deployed, MagicPointNet, SuperPointNet, scores_of_cells

IDENTITY = torch.eye(3)[None]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _run(network, *inputs):
    return network(*inputs)


def _everywhere(rows: int, columns: int, count: int = 1) -> torch.Tensor:
    return torch.ones(count, 8 * rows, 8 * columns, dtype=torch.bool)


@pytest.mark.parametrize(("network", "norm", "count"), [
    (SuperPointNet, "prp", 1_304_067), (SuperPointNet, "open", 1_304_067), (SuperPointNet, "none", 1_300_865),
    (MagicPointNet, "prp", 942_083), (MagicPointNet, "none", 939_905),
])
def test_parameter_counts(network, norm, count):
    assert sum(value.numel() for value in network(norm).parameters()) == count


def test_order_of_norm_and_activation():
    """``prp`` ends a unit with ReLU, so nothing is negative; ``open`` with batch norm, so something is."""
    image = torch.rand(2, 1, 16, 16)
    assert SuperPointNet("prp").encode(image).min() >= 0
    assert SuperPointNet("open").encode(image).min() < 0
    assert SuperPointNet("prp").encoder[0][1].eps == 1e-3


def test_maps_and_scores():
    maps = SuperPointNet().eval()(torch.rand(2, 1, 24, 40))
    assert maps.logits.shape == (2, 65, 3, 5)
    assert maps.descriptors.shape == (2, 256, 3, 5)
    logits = torch.randn(1, 65, 2, 3)
    scores = scores_of_cells(logits)
    assert scores.shape == (1, 1, 16, 24)
    probability = logits[0, :, 1, 2].softmax(0)
    assert float(scores[0, 0, 8 + 3, 16 + 5]) == pytest.approx(float(probability[3 * 8 + 5]), rel=1e-5)
    assert float(scores[0, 0, 8:, 16:].sum()) == pytest.approx(1 - float(probability[64]), rel=1e-5)


def _published() -> dict[str, torch.Tensor]:
    """Random weights in the layout of superpoint_v1.pth."""
    sizes = {"1a": (64, 1, 3), "1b": (64, 64, 3), "2a": (64, 64, 3), "2b": (64, 64, 3), "3a": (128, 64, 3),
             "3b": (128, 128, 3), "4a": (128, 128, 3), "4b": (128, 128, 3), "Pa": (256, 128, 3), "Pb": (65, 256, 1),
             "Da": (256, 128, 3), "Db": (256, 256, 1)}
    state = {}
    for name, (outputs, inputs, kernel) in sizes.items():
        state[f"conv{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2)
        state[f"conv{name}.bias"] = torch.randn(outputs) / 10
    return state


def test_published_layout_computes_what_it_says():
    state, image = _published(), torch.rand(1, 1, 32, 40)

    def layer(name, features):
        weight = state[f"conv{name}.weight"]
        return F.conv2d(features, weight, state[f"conv{name}.bias"], padding=weight.shape[-1] // 2)

    features = image
    for number, name in enumerate(("1a", "1b", "2a", "2b", "3a", "3b", "4a", "4b")):
        features = F.relu(layer(name, F.max_pool2d(features, 2) if number in (2, 4, 6) else features))
    network = SuperPointNet("none")
    network.load_state_dict(network.from_published(state))
    maps = network(image)
    torch.testing.assert_close(maps.logits, layer("Pb", F.relu(layer("Pa", features))))
    torch.testing.assert_close(maps.descriptors, layer("Db", F.relu(layer("Da", features))))
    detector = MagicPointNet("none")
    detector.load_state_dict(detector.from_published(state))
    torch.testing.assert_close(detector(image).logits, maps.logits)


def test_published_layout_refused():
    with pytest.raises(InputError, match="use norm=none"):
        SuperPointNet("prp").from_published(_published())
    with pytest.raises(InputError, match=r"not the layers of MagicLeap's SuperPoint .*amiss: conv5a"):
        SuperPointNet("none").from_published(_published() | {"conv5a.weight": torch.zeros(1)})
    fewer = {name: values for name, values in _published().items() if "Db" not in name}
    with pytest.raises(InputError, match="amiss: convDb"):
        SuperPointNet("none").from_published(fewer)
    assert len(PUBLISHED) == 12


def test_cell_classes():
    labels = torch.zeros(1, 8, 24, dtype=torch.uint8)
    labels[0, 2, 3] = 90  # any strength is a point
    labels[0, 1, 8], labels[0, 6, 15] = 255, 90
    drawn = torch.stack([losses.cell_classes(labels)[0, 0] for _ in range(40)])
    assert (drawn[:, 0] == 2 * 8 + 3).all()
    assert set(drawn[:, 1].tolist()) == {8, 6 * 8 + 7}, "one of several, at random"
    assert (drawn[:, 2] == 64).all()


def test_detector_loss_reference():
    logits, labels, mask = torch.randn(2, 65, 2, 3), torch.zeros(2, 16, 24, dtype=torch.uint8), _everywhere(2, 3, 2)
    labels[0, 9, 4], labels[1, 0, 23] = 255, 120
    mask[1, 15, 0] = False  # one pixel spoils its cell
    expected = []
    for b, i, j in np.ndindex(2, 2, 3):
        if (b, i, j) == (1, 1, 0):
            continue
        target = {(0, 1, 0): 8 + 4, (1, 0, 2): 7}.get((b, i, j), 64)
        expected.append(float(torch.logsumexp(logits[b, :, i, j], 0) - logits[b, target, i, j]))
    assert float(losses.detector_loss(logits, labels, mask)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(losses.detector_loss(logits, labels, torch.zeros_like(mask))) == 0


def test_cell_centres():
    """The middle of pixels 8i to 8i + 7, row by row."""
    assert losses.cell_centres(torch.zeros(1, 1, 2, 3)).tolist() == [
        [3.5, 3.5], [11.5, 3.5], [19.5, 3.5], [3.5, 11.5], [11.5, 11.5], [19.5, 11.5]]


HOMOGRAPHY = torch.tensor([[[0.9, 0.2, 3.0], [-0.1, 1.1, 2.0], [1e-3, -5e-4, 1.0]]])


def _slow_dense(first, second, homography, valid0, valid1, positive, normalise):
    """Eqs. 5 and 6 by loops over all pairs of cells; first, second: D×h×w, valid: h×w."""
    rows, columns = first.shape[1:]
    cells = [(i, j) for i in range(rows) for j in range(columns)]

    def unit(vector):
        return vector / math.sqrt(sum(x * x for x in vector) or 1)

    dots = np.array([[float(unit(first[:, i, j]) @ unit(second[:, k, m])) for k, m in cells] for i, j in cells])
    if normalise:
        dots = np.maximum(dots, 0)
        for row in dots:
            row /= math.sqrt((row**2).sum()) or 1
        for column in dots.T:
            column /= math.sqrt((column**2).sum()) or 1
    total = count = 0
    for a, (i, j) in enumerate(cells):
        x, y, w = homography @ [8 * j + 3.5, 8 * i + 3.5, 1]
        for b, (k, m) in enumerate(cells):
            if valid0[i, j] and valid1[k, m]:
                near = math.dist((x / w, y / w), (8 * m + 3.5, 8 * k + 3.5)) <= 7.5
                total += positive * max(0, 1 - dots[a, b]) if near else max(0, dots[a, b] - 0.2)
                count += 1
    return total / count


@pytest.mark.parametrize(("name", "positive", "weight", "normalise"),
                         [("dense", 0.05, 1e4, True), ("paper", 250, 1e-4, False)])
def test_dense_descriptor_loss_reference(name, positive, weight, normalise):
    first, second = torch.randn(1, 5, 3, 4), torch.randn(1, 5, 3, 4)
    mask0, mask1 = _everywhere(3, 4), _everywhere(3, 4)
    mask0[0, 17, 9], mask1[0, :8, :8] = False, False
    valid0, valid1 = torch.ones(3, 4), torch.ones(3, 4)
    valid0[2, 1], valid1[0, 0] = 0, 0
    slow = _slow_dense(*(values[0].double().numpy() for values in (first, second, HOMOGRAPHY)), valid0, valid1,
                       positive, normalise)
    loss = losses.DESCRIPTOR_LOSSES[name](first, second, HomographyWarp(HOMOGRAPHY, mask0, mask1), mask0, mask1)
    assert float(loss) == pytest.approx(weight * slow, rel=1e-4)


@pytest.mark.parametrize("near", [3.5, 7.5, 8.0, 13.0])
def test_cells_near_points(near):
    points = torch.cat([40 * torch.rand(50, 2) - 6, torch.tensor([[11.5, 3.5], [-1e6, -1e6]])])
    where, close = losses.cells_near(points, (3, 4), near)
    truth = torch.cdist(points, losses.cell_centres(torch.zeros(1, 1, 3, 4)),
                        compute_mode="donot_use_mm_for_euclid_dist") <= near
    found = torch.zeros(len(points), 12).scatter_add_(1, where, close.float())
    assert truth.any()
    assert torch.equal(found, truth.float()), "each once"


def test_dense_descriptor_loss_makes_again_what_is_too_much_to_keep(monkeypatch):
    maps = [torch.randn(2, 5, 3, 4, requires_grad=True) for _ in range(2)]
    warp, mask = HomographyWarp(HOMOGRAPHY.expand(2, -1, -1), *[_everywhere(3, 4, 2)] * 2), _everywhere(3, 4, 2)
    results = []
    for kept in (0, 2**24):
        monkeypatch.setattr(losses, "KEPT", kept)
        loss = losses.DESCRIPTOR_LOSSES["dense"](*maps, warp, mask, mask)
        results.append((loss.detach(), *torch.autograd.grad(loss, maps)))
    torch.testing.assert_close(*results)


def test_draws_are_even_and_of_what_is_valid():
    valid = torch.tensor([[True, False, True, True], [False] * 4])
    drawn, usable = losses._draw(valid, 30_000)
    counts = torch.bincount(drawn[0], minlength=4) / 10_000
    torch.testing.assert_close(counts, valid[0].float(), atol=0.05, rtol=0)
    assert usable.all(1).tolist() == [True, False]


def test_dense_descriptor_loss_knows_the_truth():
    """Descriptors that are all different and follow the shift by a cell beat descriptors that do not follow it."""
    maps = F.normalize(torch.randn(1, 64, 6, 8), dim=1)
    shift = torch.tensor([[[1.0, 0, 8], [0, 1, 0], [0, 0, 1]]])
    mask = _everywhere(6, 8)
    followed, stayed = (losses.DESCRIPTOR_LOSSES["dense"](maps, others, HomographyWarp(shift, mask, mask), mask, mask)
                        for others in (maps.roll(1, 3), maps))
    assert followed < 0.6 * stayed


def test_sparse_descriptor_loss_reference():
    """With one anchor that can be drawn, and one other cell that is far enough, the draw does not matter."""
    first, second = torch.randn(1, 5, 3, 4), torch.randn(1, 5, 3, 4)
    for cell in ((1, 1), (2, 3)):  # both are like the anchor, but only the second one is no counterpart
        second[0, :, cell[0], cell[1]] = first[0, :, 1, 1] + 0.4 * torch.randn(5)
    mask0, mask1 = ~_everywhere(3, 4), ~_everywhere(3, 4)
    mask0[0, 8:16, 8:16] = True
    mask1[0, 8:24, 8:32] = True
    shift = torch.tensor([[[1.0, 0, 2], [0, 1, 0], [0, 0, 1]]])  # a quarter of a cell to the right
    anchor = F.normalize(first[0, :, 1, 1], dim=0)
    counterpart = F.normalize(0.75 * second[0, :, 1, 1] + 0.25 * second[0, :, 1, 2], dim=0)
    far = [cell for cell in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3))
           if math.dist((8 * cell[1], 8 * cell[0]), (8 + 2, 8)) > 7.5]
    cosines = {cell: float(anchor @ F.normalize(second[0, :, cell[0], cell[1]], dim=0)) for cell in far}
    active = [cosine - 0.2 for cosine in cosines.values() if cosine > 0.2]
    assert active
    assert (1, 1) not in far
    draw = losses.SparseDescriptorLoss(positives=200, negatives=100)
    loss = draw(first, second, HomographyWarp(shift, mask0, mask1), mask0, mask1)
    # Negatives are drawn uniformly, so that the mean over active ones is theirs, up to the draw.
    attraction = 1 - float(anchor @ counterpart)
    assert float(loss) == pytest.approx(attraction + np.mean(active), rel=0.01)
    narrow = ~_everywhere(3, 4)
    narrow[0, 8:16, 9:16] = True  # the counterpart is seen, but no cell is whole
    loss = draw(first, second, HomographyWarp(shift, mask0, narrow), mask0, narrow)
    assert float(loss) == pytest.approx(attraction, rel=1e-4)
    nowhere = ~_everywhere(3, 4)
    nothing = draw(first, second, HomographyWarp(shift, mask0, nowhere), mask0, nowhere)
    assert float(nothing) == 0


@pytest.mark.parametrize("name", losses.DESCRIPTOR_LOSSES)
def test_descriptor_losses_reach_both_images_where_they_are_valid(name):
    first, second = (torch.randn(2, 6, 4, 4, requires_grad=True) for _ in range(2))
    mask0, mask1 = _everywhere(4, 4, 2), _everywhere(4, 4, 2)
    mask0[1], mask1[0, :, 24:] = False, False
    warp = HomographyWarp(IDENTITY.expand(2, -1, -1), mask0, mask1)
    losses.DESCRIPTOR_LOSSES[name](first, second, warp, mask0, mask1).backward()
    for maps in (first, second):
        assert torch.isfinite(maps.grad).all()
        assert maps.grad[0, :, :, :3].abs().sum() > 0
        assert maps.grad[1].abs().sum() == 0, "view 0 of the second pair shows nothing"
    if name == "paper":  # the others' normalisation and sampling reach across cells
        assert second.grad[0, :, :, 3].abs().sum() == 0


@pytest.mark.parametrize("name", losses.DESCRIPTOR_LOSSES)
def test_descriptor_losses_pull_matches_together(name):
    loss = losses.SparseDescriptorLoss(40, 20) if name == "sparse" else losses.DESCRIPTOR_LOSSES[name]
    first, second = torch.randn(1, 16, 5, 5, requires_grad=True), torch.randn(1, 16, 5, 5, requires_grad=True)
    optimizer = torch.optim.Adam([first, second], 0.1)
    mask = _everywhere(5, 5)
    for _ in range(60):
        optimizer.zero_grad()
        loss(first, second, HomographyWarp(IDENTITY, mask, mask), mask, mask).backward()
        optimizer.step()
    cosines = F.normalize(first, dim=1).flatten(2)[0].T @ F.normalize(second, dim=1).flatten(2)[0]
    own = cosines.diag().mean()
    assert own > 0.4
    assert own - (cosines.sum() - cosines.trace()) / (25 * 24) > 0.3


@pytest.mark.parametrize("network", KINDS)
def test_joint_losses_reach_all_that_is_trained_and_only_that(network):
    method = SuperPoint(SuperPointConfig(network=network, descriptor_loss="sparse"))
    joint = method.stages()[-1]
    module = joint.network()
    loss = joint.losses(_run, module, _pair_batch(method))
    total = loss["detector"] + loss["descriptor"]
    torch.testing.assert_close(loss["loss"], total)
    total.backward()
    for name, values in module.named_parameters():
        assert (values.grad is not None) == values.requires_grad, name
    frozen = {name.partition(".")[0] for name, values in module.named_parameters() if not values.requires_grad}
    assert frozen == ({"reliability"} if network == "compact" else set())


@pytest.mark.parametrize("network", KINDS)
def test_detector_stages_train_no_descriptors(network):
    method = SuperPoint(SuperPointConfig(network=network))
    for stage in method.stages()[:-1]:
        module = stage.network()
        batch = stage.dataset(_context())[0] if stage.name == "magicpoint" else _pair_batch(method)
        batch = type(batch)(*(part[None] for part in batch)) if stage.name == "magicpoint" else batch
        stage.losses(_run, module, batch)["loss"].backward()
        assert not stage.describes
        for name, values in module.named_parameters():
            assert (values.grad is not None) == values.requires_grad, name
            assert not name.startswith("descri") or not values.requires_grad
        assert len(stage.deployed(module.eval())(torch.rand(1, 1, 64, 64))) == 1


def test_compact_cells_keep_their_labels():
    """Wherever the grid begins, the pixel that has a label is the one that its cell's class names."""
    logits, labels, mask = torch.zeros(1, 1, 48, 48), torch.zeros(1, 48, 48, dtype=torch.uint8), _everywhere(6, 6)
    logits[0, 0, 21, 30], labels[0, 21, 30] = 8.0, 255
    places = set()
    for _ in range(20):
        cells, own, whole = KINDS["compact"].cells(logits, labels, mask)
        assert cells.shape[1] == 65
        assert own.shape == whole.shape
        places.add(int(losses.cell_classes(own).min()))
        classes = losses.cell_classes(own)
        assert torch.equal(cells.exp().amax(1) > 0.5, classes < 64)
        assert cells.gather(1, classes[:, None])[0, 0][classes[0] < 64].exp().item() > 0.9
    assert len(places) > 5, "the grid moves"


@pytest.mark.parametrize("network", KINDS)
def test_deployed_equals_the_network_by_hand(network, tmp_path):
    stage = SuperPoint(SuperPointConfig(network=network)).stages()[-1]
    module = stage.network().eval()
    deployed, image = stage.deployed(module), torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        scores, descriptors = deployed(image)
        logits, raw = module(image)[:2]
    if network == "superpoint":
        cell = logits[0, :, 3, 5].exp()
        expected = float(cell[2 * 8 + 6] / cell.sum())
    else:
        expected = float(torch.sigmoid(logits[0, 0, 26, 46]))
    assert float(scores[0, 0, 8 * 3 + 2, 8 * 5 + 6]) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(descriptors, raw)
    assert not isinstance(deployed, type(module))
    assert isinstance(deployed, Deployed)


def test_stages_follow_the_rounds():
    method = SuperPoint(SuperPointConfig(rounds=3))
    stages = method.stages()
    assert [stage.name for stage in stages] == ["magicpoint", "round1", "round2", "joint"]
    assert [stage.describes for stage in stages] == [False, False, False, True]
    assert all(stage.start is None for stage in stages)
    assert [stage.training["steps"] for stage in stages] == [200_000, 30_000, 30_000, 300_000]
    assert [stage.training["learning_rate"] for stage in stages] == [1e-3, 1e-3, 1e-3, 1e-4]
    assert SuperPoint(SuperPointConfig(descriptor_loss="sparse")).stages()[-1].training["batch_size"] == 8
    assert [stage.name for stage in SuperPoint(SuperPointConfig(rounds=1)).stages()] == ["magicpoint", "joint"]
    assert find_method("superpoint") is SuperPoint


@pytest.mark.parametrize("network", KINDS)
def test_warm_stages_start_from_their_teacher(network):
    method = SuperPoint(SuperPointConfig(network=network, warm=True))
    first, middle, joint = method.stages()
    teachers = {"magicpoint": first.network(), "round1": middle.network()}
    module = joint.network()
    joint.start(module, _context(teachers))
    own, taught = module.state_dict(), teachers["round1"].state_dict()
    assert all(torch.equal(own[name], values) for name, values in taught.items())
    module = middle.network()
    middle.start(module, _context(teachers))
    assert all(torch.equal(values, teachers["magicpoint"].state_dict()[name])
               for name, values in module.state_dict().items())
    assert first.start is None


def test_each_stage_is_taught_by_the_one_before(tmp_path):
    config = SuperPointConfig(network="compact", rounds=3, warps=1, adapt_height=64, adapt_width=96)
    stages, asked = SuperPoint(config).stages(), []

    def trained(name):
        asked.append(name)
        return stages[0].network().eval()

    for stage in stages[1:]:
        stage.dataset(replace(_context(items=1, cache=tmp_path), trained=trained))
    assert asked == ["magicpoint", "round1", "round2"]


def _as_checkpoint(network, file: Path) -> str:
    """A file as a run of ours writes it."""
    state = {f"network.{name}": values for name, values in network.state_dict().items()}
    torch.save({"kp_training": {}, "state_dict": state}, file)
    return str(file)


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_teacher_in_place_of_the_stages_before_the_last(tmp_path, network, warm):
    """One stage; the file's network labels, as the stage before would have; warm, the stage starts from it."""
    config = SuperPointConfig(network=network, height=64, width=96, warps=2, adapt_height=64, adapt_width=96,
                              adapt_fewest=0)
    before = SuperPoint(config).stages()
    taught = before[-1].network().eval()
    file = _as_checkpoint(taught, tmp_path / "teacher.ckpt")
    (joint,) = SuperPoint(replace(config, teacher=file, warm=warm)).stages()
    assert joint.name == "joint"
    assert joint.training == before[-1].training
    context = _context(cache=tmp_path)  # that knows no earlier stage
    ours, usual = joint.dataset(context), before[-1].dataset(_context({"round1": taught}, cache=tmp_path / "usual"))
    for number in range(2):
        assert ours[number].labels0.any()
        assert torch.equal(ours[number].labels0, usual[number].labels0)
    module = joint.network()
    if warm:
        joint.start(module, context)
        assert all(torch.equal(values, taught.state_dict()[name]) for name, values in module.state_dict().items())
    else:
        assert joint.start is None


def test_a_wrong_teacher_is_said_before_anything_is_labelled(tmp_path):
    """A missing file, one that is none, another network's and another order of layers: one line each."""
    text = tmp_path / "text.ckpt"
    text.write_text("no weights")
    compact = _as_checkpoint(KINDS["compact"].build("", True), tmp_path / "compact.ckpt")
    published = tmp_path / "superpoint_v1.pth"
    torch.save(_published(), published)
    wrong = {str(tmp_path / "nowhere.ckpt"): "no weight file .*nowhere.ckpt",
             str(text): "text.ckpt cannot be read as a checkpoint",
             compact: "compact.ckpt: the weights do not fit SuperPointNet",
             str(published): "use norm=none"}
    for file, message in wrong.items():
        (joint,) = SuperPoint(SuperPointConfig(teacher=file, warm=True)).stages()
        for use in (joint.dataset, partial(joint.start, joint.network())):
            with pytest.raises(InputError, match=message) as error:
                use(_context(cache=tmp_path / "labels"))
            assert "\n" not in str(error.value)
    assert not (tmp_path / "labels").exists()


def _context(trained=None, items: int = 4, cache: Path = Path("nowhere")) -> Context:
    return Context(ProceduralImages(6, (96, 128)), 3, torch.device("cpu"), False, cache, (trained or {}).__getitem__,
                   items)


def _pair_batch(method: SuperPoint):
    """One pair of 64×96 views whose labels are a grid of points."""
    from kp_training.data.pairs import HomographyPairs, PairConfig

    points = np.array([[x, y, 1.0] for x in range(10, 120, 20) for y in range(10, 90, 20)], np.float32)
    config = PairConfig("superpoint", "superpoint", "gray", 64, 96)
    pair = HomographyPairs(ProceduralImages(2, (96, 128)), config, 1, lambda index: points)[0]
    return type(pair)(*(part[None] for part in pair))


def test_pairs_are_labelled_by_the_teacher_and_only_as_many_as_are_used(tmp_path):
    config = SuperPointConfig(network="compact", height=64, width=96, warps=3, adapt_height=64, adapt_width=96)
    stage = SuperPoint(config).stages()[1]
    teacher = stage.network().eval()
    pairs = stage.dataset(_context({"magicpoint": teacher}, 4, tmp_path))
    assert len(pairs.images) == 4
    assert all(pairs[number].labels0.any() for number in range(4)), "an untrained network's σ(0) is above the threshold"
    limited = SuperPoint(SuperPointConfig(adapt_limit=5))
    assert [limited._labelled(items) for items in (2, 10**6)] == [2, 5]
    paper = SuperPoint(SuperPointConfig())
    assert [paper._labelled(items) for items in (2, 100, 480_000)] == [2, 8, 28_800]


def test_exported_superpoint_at_two_sizes(tmp_path):
    module = SuperPoint(SuperPointConfig()).stages()[-1].network().eval()
    deployed, file = Deployed(module, KINDS["superpoint"].scores, 2).eval(), str(tmp_path / "superpoint.onnx")
    names = ["scores", "descriptors"]
    axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in ("image", *names)}
    torch.onnx.export(deployed, (torch.rand(1, 1, 32, 48),), file, input_names=["image"], output_names=names,
                      dynamic_axes=axes, opset_version=18, dynamo=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in ((32, 48), (56, 40)):
        image = torch.rand(1, 1, *size)
        with torch.no_grad():
            expected = deployed(image)
        for ours, theirs in zip(session.run(names, {"image": image.numpy()}), expected):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize(("settings", "message"), [
    ({"network": "huge"}, "unknown superpoint network 'huge'; choose one of: compact, superpoint"),
    ({"norm": "group"}, "unknown superpoint norm 'group'; choose one of: none, open, prp"),
    ({"descriptor_loss": "triplet"}, "unknown superpoint descriptor_loss 'triplet'; choose one of: dense, paper"),
    ({"geometry": "flat"}, "unknown superpoint geometry 'flat'; choose one of: .*superpoint, wide"),
    ({"style": "neon"}, "unknown superpoint style 'neon'; choose one of: .*superpoint"),
    ({"height": 100}, "height=100: expected a multiple of 8, of at least 64, or 0 for auto"),
    ({"network": "compact", "width": 72}, "width=72: expected a multiple of 32"),
    ({"rounds": 0}, "rounds=0: expected at least 1"),
    ({"warps": 0}, "warps=0: expected at least 1"),
    ({"adapt_height": 8}, "adapt_height=8: expected at least 64"),
    ({"adapt_threshold": 1.5}, "adapt_threshold=1.5: expected a probability"),
])
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        SuperPoint(SuperPointConfig(**settings))
