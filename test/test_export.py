"""Exported models against their PyTorch originals, their metadata, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kp_frontend import load_extractor
from kp_frontend.errors import InputError
from kp_frontend.extractors.learned import network_input
from kp_frontend.model_file import KEY, ModelMetadata
from kp_training.__main__ import main
from kp_training.cli.export import check_images
from kp_training.deployment import metadata_of, torch_extractor
from kp_training.export import onnx as exporting
from kp_training.runs import Run, build_run, load_checkpoint, load_network, open_run

VARIANTS = {
    "kp2d-compact": ("kp2d", {"network": "compact"}),
    "kp2d-v0": ("kp2d", {"version": "v0"}),
    "kp2d-v4": ("kp2d", {}),
    "superpoint-prp": ("superpoint", {}),
    "superpoint-none": ("superpoint", {"norm": "none"}),
    "superpoint-compact": ("superpoint", {"network": "compact"}),
    "silk": ("silk", {}),
    "silk-padded": ("silk", {"padding": True, "channels": 16}),
    "silk-compact": ("silk", {"network": "compact"}),
    "residual": ("residual", {}),
    "residual-upright": ("residual", {"detector": "rootsift", "upright": True, "fusion": False}),
}


@dataclass(frozen=True)
class Exported:
    """A method with random weights, its deployed module, the file it was exported to, and how far they differ."""

    name: str
    run: Run
    network: torch.nn.Module
    path: Path
    difference: float

    @property
    def metadata(self) -> ModelMetadata:
        return metadata_of(self.name, self.run.method, self.network, data="nothing", licence="none")

    @property
    def module(self) -> torch.nn.Module:
        return self.run.stages[-1].deployed(self.network).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, tmp_path_factory):
    name, settings = VARIANTS[request.param]
    run = build_run(Path(), name, [], settings)
    torch.manual_seed(3)
    network = run.stages[-1].network().eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # batch statistics that are not trivial
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    made = Exported(name, run, network, tmp_path_factory.mktemp("models") / f"{request.param}.onnx", 0)
    decoding, images = run.method.decoding(), [check_images(None)[0][:96, :160]]
    difference = exporting.export_onnx(made.module, decoding.outputs, made.metadata, made.path, images, decoding.points)
    return replace(made, difference=difference)


def test_export_agrees_at_sizes_it_was_not_traced_at(exported):
    assert exported.difference < exporting.TOLERANCE
    decoding, metadata = exported.run.method.decoding(), exported.metadata
    for height, width in ((96, 64), (160, 224)):
        image = check_images(None)[0][:height, :width]
        points = decoding.points(image) if decoding.points else {}
        difference = exporting.largest_difference(exported.module, exported.path, decoding.outputs,
                                                  network_input(image, metadata), points)
        assert difference < exporting.TOLERANCE


def test_batch_norm_is_folded(exported):
    """Into the convolution before it; SiLK's and the open SuperPoint's come after the ReLU, where there is none."""
    nodes = onnx.load(str(exported.path)).graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    assert not [norm.name for norm in norms if made_by[norm.input[0]] == "Conv"]
    assert not {node.op_type for node in nodes} & {"NonZero", "Dropout", "Loop", "If"}


def test_runtime_gives_the_features_that_pytorch_gives(exported):
    """Same photograph, odd size (padding), through the ONNX file and through PyTorch, by the same extractor."""
    image = check_images(None)[0][100:331, 50:377]
    stage = exported.run.stages[-1]
    ours = torch_extractor(exported.name, exported.run.method, stage, exported.network, torch.device("cpu"), 200)
    expected, found = ours.extract(image), load_extractor(str(exported.path), top_k=200).extract(image)
    assert len(found) == len(expected) > 50
    near = np.linalg.norm(found.keypoints[:, None] - expected.keypoints, axis=2) < 0.01
    assert near.any(1).mean() > 0.98  # scores that are almost equal may change places
    likeness = np.where(near, found.descriptors @ expected.descriptors.T, -1)  # SIFT can have two points in a place
    assert likeness.max(1)[near.any(1)].min() > 0.999


def test_metadata_says_how_to_decode(exported):
    values = {entry.key: entry.value for entry in onnx.load(str(exported.path)).metadata_props}
    metadata = ModelMetadata.from_json(values[KEY], str(exported.path))
    assert (metadata.method, metadata.data, metadata.licence) == (exported.name, "nothing", "none")
    assert metadata == exported.metadata
    assert metadata.variant == exported.run.method.variant
    opset = onnx.load(str(exported.path)).opset_import[0].version
    assert opset == 18


def test_size_frozen_into_the_graph_is_not_written(tmp_path):
    """A network that bakes the traced size into the graph differs at another size: nothing is left behind."""
    class Frozen(torch.nn.Module):
        def forward(self, image):
            ramp = torch.linspace(0, 1, int(image.shape[-1]))
            padded = torch.nn.functional.pad(image, (0, 500))[..., : len(ramp)]
            return padded * ramp, image[:, :, ::8, ::8].repeat(1, 64, 1, 1)

    metadata = ModelMetadata("kp2d", "frozen", "full", 64, 8)
    path = tmp_path / "frozen.onnx"
    path.write_bytes(b"the model before")
    image = np.full((128, 256, 3), 128, np.uint8)
    with pytest.raises(InputError, match="ONNX differs from PyTorch by inf"):
        exporting.export_onnx(Frozen(), ("scores", "descriptors"), metadata, path, [image])
    assert path.read_bytes() == b"the model before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    words = ["train", "--method", "kp2d", "--data", "procedural:2", "--run", str(folder), "--steps", "2",
             "network=compact", "height=64", "width=64", "batch_size=2", "workers=0", "ema=0.5", "validation_pairs=1"]
    assert main(words) == 0
    return folder


def test_command_exports_the_average(run, tmp_path, capsys):
    path = tmp_path / "models" / "small.onnx"
    assert main(["export", str(run), "--output", str(path), "--licence", "CC0"]) == 0
    assert "differs from PyTorch by" in capsys.readouterr().out
    values = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    metadata = ModelMetadata.from_json(values[KEY], str(path))
    assert (metadata.licence, metadata.data, metadata.metrics["steps"]) == ("CC0", "procedural:2", 2)
    assert metadata.metrics["M.Score"] >= 0
    checkpoint = load_checkpoint(run)
    _, network = load_network(open_run(run).method, checkpoint)
    weight = network.state_dict()["reliability.weight"]
    assert torch.equal(weight, checkpoint["state_dict"]["average.reliability.weight"])
    assert not torch.equal(weight, checkpoint["state_dict"]["network.reliability.weight"])
    assert len(load_extractor(str(path), top_k=50).extract(check_images(None)[0])) == 50


@pytest.mark.parametrize(("words", "message"), [
    (["{run}", "--output", "{tmp}/m.onnx", "--top-k", "1000"], "--top-k asks for the sparse profile"),
    (["{run}", "--output", "{tmp}/m.pt"], "expected a file name that ends in .onnx"),
    (["{tmp}", "--output", "{tmp}/m.onnx"], "holds no run (no config.yaml)"),
    (["{run}", "--output", "{tmp}/m.onnx", "--check-image", "{tmp}/none"], "is no folder"),
    (["{run}", "network=compact", "--output", "{tmp}/m.onnx"], "network=compact: settings go with --method"),
    (["{tmp}/none.pth", "--method", "kp2d", "--output", "{tmp}/m.onnx"], "no weight file"),
])
def test_bad_input_is_one_line(run, tmp_path, capsys, words, message):
    assert main(["export", *(word.format(run=run, tmp=tmp_path) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_weights_of_another_network_are_refused(run):
    other = build_run(run, "kp2d", [], {}).method
    with pytest.raises(InputError, match="do not fit"):
        load_network(other, load_checkpoint(run))
