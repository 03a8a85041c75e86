"""Exported models against their PyTorch originals, their metadata, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from kp_frontend import load_extractor
from kp_frontend.decoding import View, decode
from kp_frontend.errors import InputError
from kp_frontend.extractors.learned import network_input
from kp_frontend.model_file import KEY, ModelMetadata
from kp_training.__main__ import main
from kp_training.cli.export import check_images
from kp_training.export import onnx as exporting
from kp_training.methods.kp2d import Kp2d, Kp2dConfig

NETWORKS = ("compact", "keypointnet")


def _method(network: str) -> tuple[Kp2d, torch.nn.Module]:
    """A method and its network with random weights and batch statistics that are not trivial."""
    torch.manual_seed(3)
    method = Kp2d(Kp2dConfig(network=network))
    module = method.network()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    return method, method.deployed(module).eval()


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    method, module = _method(request.param)
    path = tmp_path_factory.mktemp("models") / f"{request.param}.onnx"
    metadata = exporting.metadata_of("kp2d", method, data="nothing", licence="none")
    images = [np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)]
    difference = exporting.export_onnx(module, method.decoding().outputs, metadata, path, images)
    return method, module, path, difference


def test_export_agrees_at_sizes_it_was_not_traced_at(exported):
    method, module, path, difference = exported
    assert difference < exporting.TOLERANCE
    outputs = method.decoding().outputs
    for height, width in ((96, 64), (160, 224)):
        blob = np.random.default_rng(1).random((1, 3, height, width), np.float32)
        blob = blob[:, :1] if method.network().color == "gray" else blob
        assert exporting.largest_difference(module, path, outputs, blob) < exporting.TOLERANCE


def test_batch_norm_is_folded(exported):
    operators = {node.op_type for node in onnx.load(str(exported[2])).graph.node}
    assert "BatchNormalization" not in operators
    assert not operators & {"NonZero", "Dropout", "Loop", "If"}


def test_runtime_gives_the_features_that_pytorch_gives(exported):
    """Same photograph, odd size (padding), through the ONNX file and through PyTorch with the runtime's decoder."""
    method, module, path, _ = exported
    image = check_images(None)[0][100:331, 50:377]
    metadata = exporting.metadata_of("kp2d", method)
    with torch.no_grad():
        maps = module(torch.from_numpy(network_input(image, metadata)))
    named = {name: value.numpy() for name, value in zip(method.decoding().outputs, maps)}
    expected = decode(named, metadata, View(*image.shape[:2]), 200)
    found = load_extractor(str(path), top_k=200).extract(image)
    assert len(found) == len(expected) > 50
    distances = np.linalg.norm(found.keypoints[:, None] - expected.keypoints, axis=2)
    near = distances.min(1) < 0.01  # scores that are almost equal may change places
    assert near.mean() > 0.98
    same = (found.descriptors * expected.descriptors[distances.argmin(1)]).sum(1)[near]
    assert same.min() > 0.999


def test_metadata_says_how_to_decode(exported):
    method, _, path, _ = exported
    values = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    metadata = ModelMetadata.from_json(values[KEY], str(path))
    assert (metadata.method, metadata.variant, metadata.data) == ("kp2d", method.variant, "nothing")
    assert metadata.decoder == {"compact": "full", "keypointnet": "cells"}[method.config.network]
    opset = onnx.load(str(path)).opset_import[0].version
    assert opset == 18


def test_size_frozen_into_the_graph_is_not_written(tmp_path):
    """A network that bakes the traced size into the graph differs at another size: nothing is left behind."""
    class Frozen(torch.nn.Module):
        def forward(self, image):
            ramp = torch.linspace(0, 1, int(image.shape[-1]))
            padded = torch.nn.functional.pad(image, (0, 500))[..., : len(ramp)]
            return padded * ramp, image[:, :, ::8, ::8].repeat(1, 64, 1, 1)

    method, _ = _method("compact")
    path = tmp_path / "frozen.onnx"
    path.write_bytes(b"the model before")
    image = np.full((128, 256, 3), 128, np.uint8)
    with pytest.raises(InputError, match="ONNX differs from PyTorch by inf"):
        exporting.export_onnx(Frozen(), ("scores", "descriptors"), exporting.metadata_of("kp2d", method), path, [image])
    assert path.read_bytes() == b"the model before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    words = ["train", "--method", "kp2d", "--data", "procedural:2", "--run", str(folder), "--steps", "2",
             "network=compact", "height=64", "width=64", "batch_size=2", "workers=0", "ema=0.5", "held_out_pairs=2"]
    assert main(words) == 0
    return folder


def test_command_exports_the_average(run, tmp_path, capsys):
    path = tmp_path / "models" / "small.onnx"
    assert main(["export", str(run), "--output", str(path), "--licence", "CC0"]) == 0
    assert "differs from PyTorch by" in capsys.readouterr().out
    values = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    metadata = ModelMetadata.from_json(values[KEY], str(path))
    assert (metadata.licence, metadata.data, metadata.metrics["steps"]) == ("CC0", "procedural:2", 2)
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    module = exporting.deployed_module(Kp2d(Kp2dConfig(network="compact")), checkpoint)
    weight = module.state_dict()["network.reliability.weight"]
    assert torch.equal(weight, checkpoint["state_dict"]["average.reliability.weight"])
    assert not torch.equal(weight, checkpoint["state_dict"]["network.reliability.weight"])
    assert len(load_extractor(str(path), top_k=50).extract(check_images(None)[0])) == 50


@pytest.mark.parametrize(("words", "message"), [
    (["{run}", "--output", "{tmp}/m.onnx", "--top-k", "1000"], "--top-k asks for the sparse profile"),
    (["{run}", "--output", "{tmp}/m.pt"], "expected a file name that ends in .onnx"),
    (["{tmp}", "--output", "{tmp}/m.onnx"], "no checkpoint at"),
    (["{run}", "--output", "{tmp}/m.onnx", "--check-image", "{tmp}/none"], "is no folder"),
])
def test_bad_input_is_one_line(run, tmp_path, capsys, words, message):
    assert main(["export", *(word.format(run=run, tmp=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_weights_of_another_network_are_refused(run):
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    with pytest.raises(InputError, match="does not fit the network of v2-keypointnet-paper"):
        exporting.deployed_module(Kp2d(Kp2dConfig()), checkpoint)
