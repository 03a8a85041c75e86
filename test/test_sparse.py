"""The sparse profile: what a graph decodes is what the runtime decodes, for every decoder, method and size."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import skimage.data
import torch

from kp_frontend.decoding import View, decode, find_decoder
from kp_frontend.engines import Request
from kp_frontend.engines.onnxruntime import load
from kp_frontend.errors import InputError
from kp_frontend.extractors.learned import from_engine
from kp_frontend.features import Features
from kp_frontend.model_file import ModelMetadata
from kp_frontend.sparse import LARGEST_TOP_K, check_outputs, model_outputs, pad_points, read_sparse
from kp_training.deployment import TorchEngine, metadata_of
from kp_training.export.onnx import describe, trace
from kp_training.export.sparse import sparse_metadata, sparse_module
from kp_training.runs import build_run

FULL = {"nms_radius": 2, "border": 0, "refine_radius": 0, "threshold": 0.0}
CELLS = {"cell": 8, "cross_ratio": 2.0, "align_corners": True, "threshold": 0.0, "nms_radius": 0}


class Maps(torch.nn.Module):
    """A network that gives its input, a tuple of maps."""

    def forward(self, maps):
        return maps


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def made(decoder: str, size: int = 4, stride: int = 8, **parameters) -> ModelMetadata:
    values = {**(FULL if decoder == "full" else CELLS), **parameters}
    return ModelMetadata("test", "test", decoder, size, stride, size_multiple=8, decoder_parameters=values)


def in_graph(maps: dict[str, np.ndarray], metadata: ModelMetadata, top_k: int) -> dict[str, np.ndarray]:
    """What the sparse module makes of the network's maps."""
    module, sparse = sparse_module(Maps(), metadata, top_k), sparse_metadata(metadata, top_k)
    outputs = module(tuple(map(torch.from_numpy, maps.values())))
    assert [output.shape for output in outputs] == [(1, top_k, 2), (1, top_k), (1, top_k, metadata.descriptor_size)]
    return dict(zip(model_outputs(sparse), (output.numpy() for output in outputs)))


def read(outputs, metadata, view, top_k=2000, **overrides) -> Features:
    return read_sparse(outputs, metadata, find_decoder(metadata, overrides)[1], view, top_k)


def check_equal(found: Features, expected: Features) -> None:
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-4)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 48), (16, 16), (8, 40)])
@pytest.mark.parametrize("parameters", [
    {}, {"nms_radius": 0}, {"nms_radius": 4, "border": 3}, {"nms_radius": 1, "refine_radius": 2},
    {"nms_radius": 0, "border": 5, "refine_radius": 1}, {"threshold": 0.9},
])
def test_full_maps_decode_as_in_the_runtime(size, parameters):
    height, width = size
    for stride in (1, 8):
        metadata = made("full", stride=stride, **parameters)
        maps = {"scores": noise(1, 1, height, width),
                "descriptors": noise(1, 4, height // stride, width // stride) - 0.5}
        for top_k in (5, 2000):  # more than there are pixels
            outputs = in_graph(maps, metadata, top_k)
            expected = decode(maps, metadata, View(height, width), top_k)
            check_equal(read(outputs, metadata, View(height, width)), expected)
            assert not outputs["scores"][0, len(expected):].any()


@pytest.mark.parametrize("size", [(32, 48), (8, 8)])
@pytest.mark.parametrize("parameters", [
    {}, {"align_corners": False}, {"cross_ratio": 1.0, "threshold": 0.4}, {"nms_radius": 1}, {"nms_radius": 9},
    {"cell": 4, "nms_radius": 4},
])
def test_cells_decode_as_in_the_runtime(size, parameters):
    metadata = made("cells", stride=4, **parameters)
    cell = metadata.decoder_parameters["cell"]
    (height, width), (rows, columns) = size, (size[0] // cell, size[1] // cell)
    maps = {"scores": noise(1, 1, rows, columns), "offsets": noise(3, rows, columns)[None, 1:] * 2 - 1,
            "descriptors": noise(1, 4, height // 4, width // 4) - 0.5}
    for top_k in (5, 200):
        outputs = in_graph(maps, metadata, top_k)
        expected = decode(maps, metadata, View(height, width), top_k)
        assert len(expected)
        check_equal(read(outputs, metadata, View(height, width)), expected)
        assert not outputs["scores"][0, len(expected):].any()


def test_equal_scores():
    """Two peaks of one height stay both where they are apart, and are one where they touch."""
    scores = np.zeros((1, 1, 16, 16), np.float32)
    scores[0, 0, [2, 12, 13], [3, 5, 5]] = 0.5
    maps = {"scores": scores, "descriptors": noise(1, 4, 2, 2)}
    metadata = made("full", nms_radius=1)
    assert len(decode(maps, metadata, View(16, 16))) == 3
    found = read(in_graph(maps, metadata, 20), metadata, View(16, 16)).keypoints.tolist()
    assert [3, 2] in found
    assert len(found) == 2
    assert ([5, 12] in found) != ([5, 13] in found)


def test_small_scores_are_refined_as_well():
    metadata = made("full", refine_radius=2)
    maps = {"scores": noise(1, 1, 16, 24) * np.float32(1e-9), "descriptors": noise(1, 4, 2, 3)}
    check_equal(read(in_graph(maps, metadata, 9), metadata, View(16, 24)), decode(maps, metadata, View(16, 24), 9))


def test_zero_descriptors_stay_zero():
    maps = {"scores": noise(1, 1, 16, 16), "descriptors": np.zeros((1, 4, 2, 2), np.float32)}
    assert not in_graph(maps, made("full"), 5)["descriptors"].any()


def outputs_of(keypoints, scores) -> dict[str, np.ndarray]:
    count = len(scores)
    return {"keypoints": np.array([keypoints], np.float32), "scores": np.array([scores], np.float32),
            "descriptors": np.arange(count, dtype=np.float32)[None, :, None] + np.zeros((1, count, 4), np.float32)}


def test_reading_drops_padding_mask_border_and_nothing_else():
    """An image of 30×21 in a network's input of 32×24; the border of 3 was that of the input."""
    points = [[4, 4], [26.4, 17.4], [26.6, 9], [9, 17.6], [30, 9], [9, 23], [12, 10], [5, 5], [7, 7]]
    outputs = outputs_of(points, [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.0])
    mask = np.ones((21, 30), np.uint8)
    mask[10, 12] = 0
    metadata = made("full", border=3)
    assert read(outputs, metadata, View(21, 30, mask)).descriptors[:, 0].tolist() == [0, 1, 7]
    assert read(outputs, metadata, View(21, 30)).descriptors[:, 0].tolist() == [0, 1, 6, 7]
    assert read(outputs, metadata, View(24, 32)).descriptors[:, 0].tolist() == list(range(8))
    assert read(outputs, metadata, View(21, 30), top_k=2).descriptors[:, 0].tolist() == [0, 1]
    assert read(outputs, metadata, View(21, 30), threshold=0.35).descriptors[:, 0].tolist() == [0, 1, 6]
    assert len(read(outputs, metadata, View(21, 30, np.zeros((21, 30), np.uint8)))) == 0
    loose = made("full", border=0)
    assert read(outputs_of([[29.4, 20.4], [29.6, 9]], [1, 1]), loose, View(21, 30)).keypoints.tolist() == [[29, 20]]


def test_features_are_copies():
    outputs = outputs_of([[1, 1], [2, 2]], [0.9, 0.8])
    features = read(outputs, made("full"), View(24, 32))
    for values in outputs.values():
        values[:] = 7
    np.testing.assert_array_equal(features.keypoints, [[1, 1], [2, 2]])
    np.testing.assert_allclose(features.scores, [0.9, 0.8])
    assert features.descriptors.max() == 1


def test_points_are_padded_with_zeros():
    padded = pad_points({"keypoints": np.ones((1, 2, 2), np.float32), "descriptors": np.ones((1, 2, 3), np.float32)}, 4)
    assert {name: values.shape for name, values in padded.items()} == {"keypoints": (1, 4, 2), "descriptors": (1, 4, 3)}
    assert all(values[0, :2].all() and not values[0, 2:].any() for values in padded.values())


@pytest.mark.parametrize("top_k", [0, LARGEST_TOP_K + 1])
def test_what_no_graph_gives_is_refused(top_k):
    for refused in (lambda: sparse_metadata(made("full"), top_k), lambda: sparse_module(Maps(), made("full"), top_k)):
        with pytest.raises(InputError, match=f"top_k is {top_k}; a sparse file has 1 to 3840 points"):
            refused()
    with pytest.raises(InputError, match="threshold is -1: in a sparse file score 0 means no point"):
        sparse_module(Maps(), made("full", threshold=-1.0), 5)
    with pytest.raises(InputError, match=r"lacks the outputs \['scores'\] of decoder 'full', sparse profile"):
        check_outputs("model", sparse_metadata(made("full"), 5), ["keypoints", "descriptors"])


# With random weights, through ONNX Runtime, beside the dense profile of the same network.
VARIANTS = {
    "kp2d-compact": ("kp2d", {"network": "compact"}),
    "kp2d-v0": ("kp2d", {"version": "v0"}),
    "kp2d-v4": ("kp2d", {}),
    "superpoint": ("superpoint", {}),
    "superpoint-compact": ("superpoint", {"network": "compact"}),
    "superpoint_prp": ("superpoint_prp", {}),
    "silk": ("silk", {"channels": 16}),
    "silk-padded": ("silk", {"padding": True, "channels": 16}),
    "silk_prp-compact": ("silk_prp", {"network": "compact"}),
    "pos_feat": ("pos_feat", {}),
    "pos_feat-compact": ("pos_feat", {"network": "compact"}),
    "pos_feat-sift": ("pos_feat", {"detector": "sift"}),
    "sedm": ("sedm", {}),
    "sedm-compact": ("sedm", {"network": "compact"}),
    "residual": ("residual", {"channels": 8}),
    "residual-alone": ("residual", {"channels": 8, "detector": "rootsift", "upright": True, "fusion": False}),
}
TOP_K = 1000
REACH = 24  # pixels that padding reaches into the image: suppression, border, a cell's offset, a receptive field's end


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return cv2.cvtColor(skimage.data.astronaut()[60:240, 160:400], cv2.COLOR_RGB2BGR)


def random_network(name: str, settings: dict):
    run = build_run(Path(), name, [], settings)
    torch.manual_seed(3)
    network = run.stages[-1].network().eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):  # PyTorch's own weights shrink the signal until all scores are the same
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    metadata = metadata_of(name, run.method, network)
    parameters = metadata.decoder_parameters
    if "threshold" in parameters:
        parameters = {**parameters, "threshold": 0.0}  # of random weights nothing may be above it
    return run, run.stages[-1].deployed(network).eval(), replace(metadata, decoder_parameters=parameters)


def write(path: Path, module: torch.nn.Module, metadata: ModelMetadata, points: dict[str, np.ndarray]) -> Path:
    image = torch.rand(1, metadata.channels, 2 * max(metadata.size_multiple, 32), 3 * max(metadata.size_multiple, 32))
    trace(module, metadata, path, (image, *map(torch.from_numpy, points.values())))
    describe(path, metadata)
    return path


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory, photo):
    """A sparse file as extractor, and its network's dense maps with the runtime's decoder; the file's path."""
    run, module, metadata = random_network(*VARIANTS[request.param])
    decoding, sparse = run.method.decoding(), sparse_metadata(metadata, TOP_K)
    points = pad_points({name: values[:, :TOP_K] for name, values in decoding.points(photo).items()}, TOP_K) \
        if decoding.points else {}
    path = write(tmp_path_factory.mktemp("sparse") / "model.onnx", module, sparse, points)
    engine = TorchEngine(module, metadata, decoding.outputs, torch.device("cpu"))
    many = TOP_K if decoding.points else 4 * TOP_K
    return from_engine("sparse", load(Request(path, threads=1)), {"top_k": TOP_K}), \
        from_engine("dense", engine, {"top_k": many}), path


def check_same(sparse: Features, dense: Features, inner: tuple[float, float]) -> None:
    """Up to `inner` (x, y): all that is sparse is dense, and all of dense that is better than the weakest is sparse."""
    weakest = 1.0001 * sparse.scores.min()
    sparse, dense = (features.select((features.keypoints <= inner).all(1)) for features in (sparse, dense))
    near = np.linalg.norm(sparse.keypoints[:, None] - dense.keypoints, axis=2) < 0.01
    assert len(sparse) > 20
    assert near.any(1).mean() > 0.99  # scores that are almost equal may suppress each other or not
    assert near[:, dense.scores > weakest].any(0).mean() > 0.99
    likeness = np.where(near, sparse.descriptors @ dense.descriptors.T, -1).max(1)[near.any(1)]
    assert likeness.min() > 0.999
    assert (np.diff(sparse.scores) <= 0).all()


def test_every_method_gives_what_the_runtime_decodes(pair, photo):
    sparse, dense, _ = pair
    for image in (photo[:96, :128], photo[:83, :107]):
        height, width = image.shape[:2]
        inner = [side if side % 32 == 0 else side - REACH for side in (width, height)]
        check_same(sparse.extract(image), dense.extract(image), tuple(inner))


def test_nothing_lies_under_the_mask(pair, photo):
    sparse, dense, _ = pair
    image, mask = photo[:96, :128], np.zeros((96, 128), np.uint8)
    mask[:, 70:] = 1
    found, expected = sparse.extract(image, mask), dense.extract(image, mask)
    assert 5 < len(found) <= TOP_K
    assert found.keypoints[:, 0].min() >= 69.5
    near = np.linalg.norm(found.keypoints[:, None] - expected.keypoints, axis=2) < 0.01
    assert near.any(1).mean() > 0.9  # at the mask's edge, refinement may cross it


def test_graphs_hold_nothing_that_depends_on_what_is_seen(pair):
    _, _, path = pair
    model = onnx.load(str(path))
    assert not {node.op_type for node in model.graph.node} & {"NonZero", "Loop", "If", "NonMaxSuppression", "Compress"}
    for output in model.graph.output:
        assert all(size.dim_value > 0 for size in output.type.tensor_type.shape.dim), output.name


@pytest.mark.parametrize("name", ["kp2d-compact", "kp2d-v4"])
def test_openvino_gives_the_same(name, tmp_path, photo):
    openvino = pytest.importorskip("openvino")
    _, module, metadata = random_network(*VARIANTS[name])
    path = write(tmp_path / "model.onnx", module, sparse_metadata(metadata, TOP_K), {})
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    blob = cv2.cvtColor(photo[:96, :128], cv2.COLOR_BGR2GRAY)[None, None].repeat(metadata.channels, 1) / np.float32(255)
    expected = load(Request(path, threads=1)).run(blob)
    found = {name: compiled([blob])[name] for name in expected}
    view = View(96, 128)
    check_same(read(found, metadata, view), read(expected, metadata, view), (128, 96))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A sparse file of 40 points, of decoder ``full`` with threshold 0.2."""
    class Image(torch.nn.Module):
        def forward(self, image):
            return image, torch.nn.functional.avg_pool2d(image, 8).repeat(1, 4, 1, 1)

    metadata = sparse_metadata(made("full", threshold=0.2), 40)
    return write(tmp_path_factory.mktemp("small") / "small.onnx", Image(), metadata, {})


@pytest.mark.parametrize(("options", "wrong"), [
    ({"nms_radius": 3}, "nms_radius is settled in this sparse model file"),
    ({"border": 0}, "border is settled"),
    ({"detector": "gftt"}, "detector is settled"),
    ({"threshold": 0.1}, r"threshold=0.1 is below 0.2, where this sparse model file cuts"),
])
def test_what_is_part_of_the_graph_cannot_be_changed(small, options, wrong):
    with pytest.raises(InputError, match=wrong):
        from_engine("small", load(Request(small, threads=1)), options)


def test_options_may_cut_further(small, photo, caplog):
    def extractor(**options):
        return from_engine("small", load(Request(small, threads=1)), options)

    with caplog.at_level(logging.WARNING):
        features = extractor(top_k=40).extract(photo)
        assert not caplog.text
        assert len(extractor(top_k=500).extract(photo)) == len(features) == 40
    assert caplog.text.count("small gives at most 40 features, 500 were asked for") == 1
    check_equal(extractor(top_k=7).extract(photo), features.select(np.arange(7)))
    middle = float(features.scores[20])
    cut = extractor(threshold=middle, top_k=40).extract(photo)
    check_equal(cut, features.select(features.scores > middle))
    assert len(extractor().extract(np.full((64, 64), 200, np.uint8))) == 0


def test_residual_gives_as_many_points_as_its_file_takes(tmp_path, photo, caplog):
    run, module, metadata = random_network(*VARIANTS["residual"])
    given = pad_points({name: values[:, :30] for name, values in run.method.decoding().points(photo).items()}, 30)
    engine = load(Request(write(tmp_path / "few.onnx", module, sparse_metadata(metadata, 30), given), threads=1))
    with caplog.at_level(logging.WARNING):
        assert len(from_engine("few", engine, {"top_k": 100}).extract(photo)) == 30
    assert "few gives at most 30 features, 100 were asked for" in caplog.text
    assert len(from_engine("few", engine, {"top_k": 10}).extract(photo)) == 10
