"""Exported models against their PyTorch originals, their metadata, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import untrained

from kp_frontend import load_extractor
from kp_frontend.engines import Request
from kp_frontend.engines.onnxruntime import load
from kp_frontend.errors import InputError
from kp_frontend.extractors.base import Extractor
from kp_frontend.extractors.learned import from_engine
from kp_frontend.model_file import KEY, ModelMetadata, read_metadata
from kp_training.__main__ import main
from kp_training.cli import export
from kp_training.deployment import metadata_of, torch_extractor
from kp_training.export import onnx as exporting
from kp_training.export import ranges
from kp_training.export.checks import BOUNDS, Sample, figures_of
from kp_training.export.half import Half
from kp_training.export.images import calibration_images, check_images
from kp_training.runs import Run, build_run, load_checkpoint, load_network, open_run

VARIANTS = {
    "kp2d-compact": ("kp2d", {"network": "compact"}),
    "kp2d-v0": ("kp2d", {"version": "v0"}),
    "kp2d-v4": ("kp2d", {}),
    "superpoint-prp": ("superpoint", {}),
    "superpoint-none": ("superpoint", {"norm": "none"}),
    "superpoint-open": ("superpoint", {"norm": "open"}),
    "superpoint_prp": ("superpoint_prp", {"network": "compact"}),
    "silk": ("silk", {"channels": 8}),
    "silk-padded": ("silk", {"padding": True, "channels": 16}),
    "silk_prp": ("silk_prp", {"channels": 8}),
    "sedm": ("sedm", {"network": "compact"}),
    "pos_feat-compact": ("pos_feat", {"network": "compact"}),
    "residual": ("residual", {}),
    "residual-upright": ("residual", {"detector": "rootsift", "upright": True, "fusion": False}),
}
KINDS = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "sparse": {"profile": "sparse", "top_k": 150},
    "sparse-fp16-uint8": {"profile": "sparse", "top_k": 150, "precision": "fp16", "input_dtype": "uint8"},
}


@dataclass(frozen=True)
class Exported:
    """A method with random weights, its deployed module, the file it was exported to, and how far they differ."""

    name: str
    run: Run
    network: torch.nn.Module
    path: Path
    figures: dict[str, float]

    @property
    def metadata(self) -> ModelMetadata:
        return metadata_of(self.name, self.run.method, self.network, data="nothing", licence="none")

    @property
    def module(self) -> torch.nn.Module:
        return self.run.stages[-1].deployed(self.network).eval()

    def export(self, path: Path, images=None, calibration=(), **changes) -> dict[str, float]:
        """As what `changes` of the metadata say, checked on two sizes."""
        decoding, metadata = self.run.method.decoding(), replace(self.metadata, **changes)
        images = images or [check_images(None)[0][:96, :160], check_images(None)[1][100:228, 30:126]]
        return exporting.export_onnx(self.module, decoding.outputs, metadata, path, images, decoding.points,
                                     calibration)


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, tmp_path_factory):
    return _exported(request.param, tmp_path_factory.mktemp("models"))


def _exported(variant: str, folder: Path) -> Exported:
    name, settings = VARIANTS[variant]
    run = build_run(Path(), name, [], settings)
    torch.manual_seed(3)
    network = run.stages[-1].network().eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # batch statistics that are not trivial
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    made = Exported(name, run, network, folder / f"{variant}.onnx", {})
    return replace(made, figures=made.export(made.path))


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_as_every_kind_of_file_agrees_at_two_sizes(exported, kind, tmp_path):
    """Neither is the size it was traced at."""
    precision = KINDS[kind].get("precision", "fp32")
    path = exported.path if kind == "fp32" else tmp_path / "model.onnx"
    figures = exported.figures if kind == "fp32" else exported.export(path, **KINDS[kind])
    assert BOUNDS[precision].broken(figures) == ""
    assert figures["cosine"] > 0.9999
    if precision == "fp16":
        assert 1e-6 < figures["difference"] < 1e-2
        weights = onnx.load(str(path)).graph.initializer
        assert {weight.data_type for weight in weights if len(weight.dims) == 4} >= {onnx.TensorProto.FLOAT16}
    metadata = read_metadata(path)
    assert metadata == replace(exported.metadata, **KINDS[kind], checks=figures)


def runtime(path: Path, top_k: int = 1000) -> Extractor:
    """The file's extractor on ONNX Runtime; `load_extractor` would compare engines first, on a large image."""
    return from_engine(path.stem, load(Request(path)), {"top_k": top_k})


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
    expected, found = ours.extract(image), runtime(exported.path, 200).extract(image)
    assert len(found) == len(expected) > 50
    near = np.linalg.norm(found.keypoints[:, None] - expected.keypoints, axis=2) < 0.01
    assert near.any(1).mean() > 0.95  # scores that are almost equal may change places
    likeness = np.where(near, found.descriptors @ expected.descriptors.T, -1)  # SIFT can have two points in a place
    assert likeness.max(1)[near.any(1)].min() > 0.999


def test_metadata_says_how_to_decode(exported):
    metadata = read_metadata(exported.path)
    assert (metadata.method, metadata.data, metadata.licence) == (exported.name, "nothing", "none")
    assert metadata.variant == exported.run.method.variant
    opset = onnx.load(str(exported.path)).opset_import[0].version
    assert opset == 18


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    return _exported("kp2d-compact", tmp_path_factory.mktemp("compact"))


@pytest.mark.parametrize("variant", ["kp2d-compact", "kp2d-v0", "residual"])
def test_bytes_in_give_exactly_what_floats_give(variant, tmp_path):
    """The very same product of a pixel and 1/255, in the graph and before it; of an odd size, so padded too."""
    made = untrained(*VARIANTS[variant])
    image = check_images(None)[0][100:231, 50:177]
    for top_k in (0, 1000):
        found = []
        for dtype in ("float32", "uint8"):
            path = made.write(tmp_path / f"{dtype}.onnx", top_k, input_dtype=dtype)
            found.append(runtime(path, 100).extract(image))
        floats, bytes_ = found
        assert len(floats) > 20
        for part in ("keypoints", "scores", "descriptors"):
            np.testing.assert_array_equal(getattr(floats, part), getattr(bytes_, part))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_fixed_size_is_in_the_graph(compact, tmp_path, precision):
    path = tmp_path / "fixed.onnx"
    figures = compact.export(path, check_images(None), height=96, width=128, precision=precision)
    model = onnx.load(str(path))
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)}
    assert shapes == {"image": [1, 1, 96, 128], "scores": [1, 1, 96, 128], "descriptors": [1, 64, 12, 16]}
    assert BOUNDS[precision].broken(figures) == ""
    extractor = runtime(path)
    assert len(extractor.extract(check_images(None)[0][:90, :120]))
    with pytest.raises(InputError, match="exported for 128×96 only"):
        extractor.extract(check_images(None)[0])


@pytest.mark.parametrize(("variant", "target"), [("kp2d-compact", "cpu"), ("residual", "tensorrt")])
def test_int8_is_calibrated_and_checked(variant, target, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "STEP", 0.5)  # fewer to try, on fewer images
    monkeypatch.setattr(ranges, "COMPARED", 1)
    made, path = _exported(variant, tmp_path), tmp_path / "int8.onnx"
    images = [image[:128, :160] for image in calibration_images(None)[:3]]
    figures = made.export(path, calibration=images, precision="int8", quantized_for=target, input_dtype="uint8")
    assert figures["cosine"] > 0.99
    assert 1e-5 < figures["difference"] < 0.2
    metadata = read_metadata(path)
    assert (metadata.precision, metadata.quantized_for, metadata.checks) == ("int8", target, figures)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(path)).graph.node}
    assert not list(tmp_path.glob(".*"))


def test_half_keeps_float_what_must_be_exact(compact):
    """Layers run on float16; sigmoid and all after it on float32, and a network's own weights stay as they are."""
    module = compact.module
    before = {name: values.clone() for name, values in module.state_dict().items()}
    image = torch.rand(1, 1, 64, 96)
    half = Half(module, (image,))
    kinds = {layer.weight.dtype for layer in half.modules() if isinstance(layer, torch.nn.Conv2d)}
    assert kinds == {torch.float16}
    assert not [layer for layer in half.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    outputs = half(image)
    assert {output.dtype for output in outputs} == {torch.float32}
    assert len(outputs[0].unique()) > 0.5 * outputs[0].numel()  # float16 would have few values below 1
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())


def test_half_sees_what_leaves_the_range_of_float16(compact, tmp_path):
    """ONNX Runtime computes float16 in float32 on a CPU, and would not notice."""
    module = compact.module
    with torch.no_grad():
        module.network.describe[1].weight *= 1e6
    with pytest.raises(InputError, match=r"difference is inf, at most 0.05 is allowed.*; export it as fp32"):
        exporting.export_onnx(module, ("scores", "descriptors"), replace(compact.metadata, precision="fp16"),
                              tmp_path / "m.onnx", [check_images(None)[0][:96, :160]])
    with torch.no_grad():
        module.network.describe[1].weight /= 1e6
    assert not list(tmp_path.iterdir())


def test_figures_by_hand():
    """Points a pixel to the right of where they were are within a pixel, those two off are not."""
    about = ModelMetadata("m", "v", "full", 2, 1, size_multiple=8, decoder_parameters={"nms_radius": 1})
    rng = np.random.default_rng(0)
    scores = np.zeros((1, 1, 64, 64), np.float32)
    scores[0, 0, 4:60:4, 4:60:4] = rng.uniform(0.5, 1, (14, 14))
    descriptors = np.ones((1, 2, 64, 64), np.float32)

    @dataclass
    class Shifted:
        by: int
        turn: float = 1.0
        backend, outputs, metadata = "test", ("scores", "descriptors"), about

        def run(self, image, **points):
            turned = descriptors * np.array([self.turn, 1], np.float32)[:, None, None]
            return {"scores": np.roll(scores, self.by, 3), "descriptors": turned}

    sample = Sample(rng.integers(0, 256, (64, 64), np.uint8), {})
    same = figures_of([Shifted(0)], Shifted(0), [sample])
    assert same == {"difference": 0, "difference_rms": 0, "scores": 0, "cosine": pytest.approx(1), "within_pixel": 1,
                    "extra": 0, "points": 1}
    near, far = (figures_of([Shifted(0), Shifted(by, -1.0)], Shifted(0), [sample]) for by in (1, 2))
    assert (near["within_pixel"], far["within_pixel"]) == (1, 0)
    assert (near["extra"], far["extra"]) == (0, 1)
    assert near["cosine"] == pytest.approx(0, abs=1e-6)
    assert near["scores"] == 0
    assert near["difference"] == pytest.approx(2)  # of the descriptors: 1 became -1
    assert near["difference_rms"] == pytest.approx(2 ** 0.5)  # of the scores: all of them, twice


@dataclass
class Listed:
    """A sparse engine that gives the keypoints of a list, of one score."""

    count: int
    score: float
    metadata = ModelMetadata("m", "v", "full", 1, 1, profile="sparse", top_k=300)
    backend, outputs = "test", ("keypoints", "scores", "descriptors")

    def run(self, image):
        found, (y, x) = np.arange(300) < self.count, np.divmod(np.arange(300, dtype=np.float32), 16)
        return {"keypoints": np.stack([4 * x, 4 * y], 1)[None], "scores": np.float32(self.score) * found[None],
                "descriptors": np.ones((1, 300, 1), np.float32)}


class Grid:
    """A dense engine with `count` maxima of score 1, where `Listed` gives its keypoints; border 0."""

    backend, outputs, metadata = "test", ("scores", "descriptors"), replace(Listed.metadata, profile="dense", top_k=0)

    def __init__(self, count):
        self.scores = np.zeros((1, 1, 80, 64), np.float32)
        index = np.arange(count)
        self.scores[0, 0, 4 * (index // 16), 4 * (index % 16)] = 1

    def run(self, image):
        return {"scores": self.scores, "descriptors": np.ones((1, 1, 80, 64), np.float32)}


SAMPLE = Sample(np.zeros((80, 64, 3), np.uint8), {})


@pytest.mark.parametrize(("count", "expected", "broken"), [
    (100, {"within_pixel": 1, "extra": 0, "points": 1}, []),
    (50, {"within_pixel": 0.5, "extra": 0, "points": 0.5}, ["within_pixel is 0.5", "points is 0.5"]),
    (200, {"within_pixel": 1, "extra": 0.5, "points": 0.5}, ["extra is 0.5, at most 0.02", "points is 0.5"]),
    (0, {"within_pixel": 0, "points": 0}, ["within_pixel is 0", "points is 0, at least 0.9"]),
])
def test_keypoints_too_many_or_too_few_are_seen(count, expected, broken):
    figures = figures_of([Listed(count, 1.0)], Grid(100), [SAMPLE, SAMPLE], BOUNDS["fp32"].margin)
    assert {name: figures[name] for name in expected} == expected
    assert ("extra" in figures) == ("extra" in expected)
    said = BOUNDS["fp32"].broken(figures)
    assert all(words in said for words in broken)
    assert bool(said) == bool(broken)


def test_few_keypoints_and_none_are_not_the_same():
    """Too few for shares, but not for there being none; extra ones at the threshold may be there."""
    assert figures_of([Listed(0, 1.0)], Grid(5), [SAMPLE])["points"] == 0
    assert figures_of([Listed(5, 1.0)], Grid(0), [SAMPLE])["points"] == 0
    assert figures_of([Listed(0, 1.0)], Grid(0), [SAMPLE]) == {"scores": 0}
    assert "extra" not in figures_of([Listed(100, 0.01)], Grid(50), [SAMPLE], margin=0.02)


def test_a_sparse_file_that_nothing_was_seen_of_is_not_written(compact, tmp_path):
    blank = [np.zeros((96, 128, 3), np.uint8)]
    metadata = replace(compact.metadata, decoder_parameters={**compact.metadata.decoder_parameters, "threshold": 1.0})
    made = replace(metadata, profile="sparse", top_k=50)
    with pytest.raises(InputError, match="finds a keypoint on 1 images"):
        exporting.export_onnx(compact.module, ("scores", "descriptors"), made, tmp_path / "m.onnx", blank)
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(InputError, match=r"differs from PyTorch \(difference is inf"):
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
    assert "beside PyTorch in float32" in capsys.readouterr().out
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
    (["{run}", "--output", "{tmp}/m.onnx", "--top-k", "1000", "--profile", "dense"], "--top-k asks for the sparse"),
    (["{run}", "--output", "{tmp}/m.onnx", "--top-k", "0"], "top_k is 0; a sparse file has 1 to 3840 points"),
    (["{run}", "--output", "{tmp}/m.onnx", "--top-k", "3841"], "top_k is 3841"),
    (["{run}", "--output", "{tmp}/m.onnx", "--precision", "fp8"], "unknown --precision 'fp8'; choose one of: fp16"),
    (["{run}", "--output", "{tmp}/m.onnx", "--calibration", "{tmp}"], "--calibration goes with --precision int8"),
    (["{run}", "--output", "{tmp}/m.onnx", "--precision", "int8", "--calibration", "{tmp}"], "holds no usable image"),
    (["{run}", "--output", "{tmp}/m.onnx", "--precision", "int8", "--calibration", "{tmp}/none"], "is no folder"),
    (["{run}", "--output", "{tmp}/m.onnx", "--size", "480x650"], "multiples of 32, such as 480x640 or 480x672"),
    (["{run}", "--output", "{tmp}/m.onnx", "--size", "vga"], "--size vga: expected HEIGHTxWIDTH"),
    (["{run}", "--output", "{tmp}/m.ckpt", "--precision", "fp16"], "writes the weights as they are"),
    (["{run}", "--output", "{tmp}/m.ckpt", "--average-with", "{tmp}/none.ckpt"], "no weight file"),
    (["{run}", "--output", "{tmp}/m.ckpt", "--average-with", "{run}/last.ckpt", "--share", "1.5"], "--share 1.5"),
    (["{run}", "--method", "kp2d", "--output", "{tmp}/m.onnx", "--average-with", "{run}"], "goes with a run"),
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


def test_weights_alone_keep_the_metrics_of_the_training(run, tmp_path):
    first, second, figures = tmp_path / "first.ckpt", tmp_path / "second.ckpt", tmp_path / "figures.json"
    written = []
    for source, target in ((run, first), (first, second), (second, tmp_path / "m.onnx")):
        assert main(["export", str(source), "--output", str(target), "--json", str(figures)]) == 0
        written.append(json.loads(figures.read_text()))
    (measured,) = open_run(run).metrics().values()
    metadata = read_metadata(tmp_path / "m.onnx")
    assert {"Rep", "M.Score", "Cor-3"} <= set(measured)
    measured = {name: value for name, value in measured.items() if not name.startswith("best/")}
    assert metadata.metrics == measured | {"steps": 2, "minutes": pytest.approx(measured["minutes"], abs=0.5)}
    said = {"file": str(second), "bytes": second.stat().st_size, "method": "kp2d", "stage": "train", "steps": 2,
            "metrics": metadata.metrics}
    assert written[1].items() >= said.items()
    assert written[2]["checks"] == metadata.checks


def test_metrics_are_those_of_the_checkpoint(run, tmp_path):
    """Of ``best.ckpt``, whatever its folder says of the last; one without metrics of its own has the folder's."""
    checkpoint, folder = load_checkpoint(run), shutil.copytree(run, tmp_path / "run")
    checkpoint["callbacks"]["Validation"]["latest"] = {"M.Score": 0.5}
    torch.save(checkpoint, folder / "best.ckpt")
    torch.save({name: value for name, value in checkpoint.items() if name != "callbacks"}, folder / "last.ckpt")
    for name in ("best", "last"):
        assert main(["export", str(folder / f"{name}.ckpt"), "--output", str(tmp_path / f"{name}.ckpt")]) == 0
    best, last = (load_checkpoint(tmp_path / f"{name}.ckpt")["metrics"] for name in ("best", "last"))
    assert best == {"steps": 2, "minutes": checkpoint["callbacks"]["Keeper"]["minutes"], "M.Score": 0.5}
    assert [last] == list(open_run(run).metrics().values())


@pytest.mark.parametrize(("method", "settings", "name"), [
    ("superpoint", {"network": "compact"}, "teacher"),
    ("sedm", {"network": "superpoint"}, "descriptor_weights"),
])
def test_weights_alone_name_no_folder(tmp_path, method, settings, name):
    """Of files that settings name; the network is built without them."""
    trained = build_run(tmp_path / "run", method, ["procedural:2"], settings | {name: "/home/somebody/given.ckpt"})
    stage = trained.stages[-1]
    trained.write_config()
    torch.save({"kp_training": trained.description() | {"stage": stage.name}, "global_step": 1,
                "state_dict": {f"network.{key}": value for key, value in stage.network().state_dict().items()}},
               trained.last)
    slim = tmp_path / "slim.ckpt"
    assert main(["export", str(trained.folder), "--output", str(slim)]) == 0
    kept = load_checkpoint(slim)
    assert kept["kp_training"]["settings"] == trained.description()["settings"] | {name: "given.ckpt"}
    assert load_network(open_run(slim).method, kept)[0].name == stage.name


def test_words_say_where_keypoints_were_not_compared():
    assert "not compared" in export._figures({"scores": 0.0, "cosine": 1.0})
    assert "not compared" not in export._figures({"scores": 0.0, "within_pixel": 1.0})
    assert "not compared" not in export._figures({"cosine": 1.0})  # of points that are given


def test_a_place_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(run), "--output", str(tmp_path / "file" / "m.onnx")]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(run):
    other = build_run(run, "kp2d", [], {}).method
    with pytest.raises(InputError, match="do not fit"):
        load_network(other, load_checkpoint(run))
