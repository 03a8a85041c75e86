"""Residual at run time: an exported model on a classical detector's points, as an extractor like any other."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import skimage.data
import torch

from kp_frontend import Frontend, load_extractor
from kp_frontend.decoding import PointsParameters, View, decode
from kp_frontend.engines import open_engine
from kp_frontend.errors import InputError
from kp_frontend.extractors.network_input import network_input
from kp_frontend.model_file import KEY, ModelMetadata
from kp_frontend.pipeline import Frame
from kp_training.deployment import metadata_of, torch_extractor
from kp_training.export.checks import TOLERANCE
from kp_training.export.onnx import export_onnx
from kp_training.methods.residual import Residual, ResidualConfig

FULL = {"channels": 4, "height": 96, "width": 128}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return cv2.cvtColor(skimage.data.astronaut()[:203, 60:361], cv2.COLOR_RGB2BGR)


def _trained(**settings):
    torch.manual_seed(0)
    method = Residual(ResidualConfig(**FULL, **settings))
    return method, method.stages()[0].network().eval()


def _export(path, photo, **settings):
    method, network = _trained(**settings)
    decoding = method.decoding()
    metadata = metadata_of("residual", method, network)
    images = [photo, photo[:120, :90]]
    return export_onnx(network, decoding.outputs, metadata, path, images, decoding.points)["difference"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("models")
    assert _export(folder / "sift.onnx", photo) < TOLERANCE
    assert _export(folder / "alone.onnx", photo, fusion=False, detector="rootsift") < TOLERANCE
    assert _export(folder / "upright.onnx", photo, upright=True, contrast=0.02) < TOLERANCE
    return folder


def _changed(model, path, **changes):
    """A copy of the file `model` whose metadata says something else."""
    loaded = onnx.load(str(model))
    text = next(entry.value for entry in loaded.metadata_props if entry.key == KEY)
    onnx.helper.set_model_props(loaded, {KEY: replace(ModelMetadata.from_json(text, ""), **changes).to_json()})
    onnx.save(loaded, str(path))
    return path


def test_points_are_the_detectors_and_descriptors_the_networks(models, photo):
    _, network = _trained()
    features = load_extractor(str(models / "sift.onnx"), top_k=200).extract(photo)
    sift = load_extractor("sift", top_k=200).extract(photo)
    assert len(features) == len(sift) == 200
    for name in ("keypoints", "scores", "sizes", "angles"):
        np.testing.assert_array_equal(getattr(features, name), getattr(sift, name))
    image = torch.from_numpy(np.ascontiguousarray(photo[..., ::-1].transpose(2, 0, 1)))[None] / 255
    image = torch.nn.functional.pad(image, (0, -301 % 8, 0, -203 % 8), mode="replicate")
    with torch.no_grad():
        expected = network(image, torch.from_numpy(sift.keypoints)[None], torch.from_numpy(sift.descriptors)[None])[0]
    np.testing.assert_allclose(features.descriptors, expected.numpy(), atol=1e-5)


def test_the_graph_takes_any_size_and_any_number_of_points(models):
    _, network = _trained()
    rng = np.random.default_rng(0)
    for height, width, count in ((48, 72, 1), (96, 40, 700)):
        blob = rng.random((1, 3, height, width), np.float32)
        points = {"keypoints": rng.uniform(0, 40, (1, count, 2)).astype(np.float32),
                  "descriptors": rng.random((1, count, 128), np.float32)}
        found = open_engine(models / "sift.onnx", "onnxruntime", threads=1).run(blob, **points)["point_descriptors"]
        with torch.no_grad():
            expected = network(torch.from_numpy(blob), *map(torch.from_numpy, points.values()))
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_without_fusion_the_graph_takes_no_descriptors(models, photo):
    inputs = [entry.name for entry in onnx.load(str(models / "alone.onnx")).graph.input]
    assert inputs == ["image", "keypoints"]
    extractor = load_extractor(str(models / "alone.onnx"))
    features = extractor.extract(photo)
    assert features.descriptors.shape == (len(features), extractor.descriptor_size)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)


def test_the_detector_is_the_models(models, photo):
    """Upright, with a lower threshold than OpenCV's default; the user's threshold wins."""
    features = load_extractor(str(models / "upright.onnx")).extract(photo)
    expected = load_extractor("sift:upright=true,contrast=0.02").extract(photo)
    np.testing.assert_array_equal(features.keypoints, expected.keypoints)
    assert len(expected) > len(load_extractor("sift:upright=true").extract(photo))
    strict = load_extractor(f"{models / 'upright.onnx'}:contrast=0.1").extract(photo)
    assert 0 < len(strict) < len(features)


def _likeness_when_rolled(spec: str, photo: np.ndarray) -> float:
    """Median cosine between the descriptors of the same places in `photo` and in it turned by 180°."""
    upright, rolled = (load_extractor(spec).extract(image) for image in (photo, photo[::-1, ::-1].copy()))
    apart = np.linalg.norm(rolled.keypoints + upright.keypoints[:, None] - [300, 202], axis=2)
    same = apart.min(1) < 1
    assert same.sum() > 50
    likeness = np.where(apart < 1, upright.descriptors @ rolled.descriptors.T, -1)
    return float(np.median(likeness.max(1)[same]))


def test_upright_points_have_no_orientation_and_one_place_each(photo):
    upright, turned = load_extractor("sift:upright=true").extract(photo), load_extractor("sift").extract(photo)
    assert not upright.angles.any()
    places = {(x, y, size) for (x, y), size in zip(turned.keypoints.tolist(), turned.sizes.tolist())}
    assert len(upright) == len(places) < len(turned)
    assert (np.diff(upright.scores) <= 0).all()
    assert _likeness_when_rolled("sift:upright=true", photo) < 0.8 < 0.95 < _likeness_when_rolled("sift", photo)


@pytest.mark.skipif(not hasattr(cv2, "xfeatures2d"), reason="this OpenCV was built without SURF")
def test_surf(photo):
    features = load_extractor("surf").extract(photo)
    assert features.descriptors.shape[1] == 128
    assert load_extractor("surf:extended=false").extract(photo).descriptors.shape[1] == 64
    assert Residual(ResidualConfig(detector="surf")).classical_size == 128


@pytest.mark.skipif(hasattr(cv2, "xfeatures2d"), reason="this OpenCV may have SURF")
@pytest.mark.parametrize("use", [lambda: load_extractor("surf"), lambda: Residual(ResidualConfig(detector="surf"))])
def test_surf_says_what_it_needs(use):
    with pytest.raises(InputError, match=r"surf: OpenCV .* was built without SURF; build it with opencv_contrib"):
        use()


def test_masks_grey_images_and_limits(models, photo):
    extractor = load_extractor(f"{models / 'sift.onnx'}:top_k=25,threads=1")
    assert len(extractor.extract(photo)) == 25
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[:, 150:] = 1
    assert (extractor.extract(photo, mask).keypoints[:, 0] >= 149).all()
    assert len(extractor.extract(photo, np.zeros_like(mask))) == 0
    grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    features = extractor.extract(grey)
    as_colour = extractor.extract(np.dstack([grey] * 3))
    np.testing.assert_array_equal(features.keypoints, as_colour.keypoints)
    np.testing.assert_allclose(features.descriptors, as_colour.descriptors, atol=1e-6)


@pytest.mark.parametrize("image", [np.zeros((64, 80), np.uint8), np.full((64, 80, 3), 90, np.uint8),
                                   np.full((3, 5), 7, np.uint8)])
def test_nothing_to_find(models, image):
    features = load_extractor(str(models / "sift.onnx")).extract(image)
    assert features.descriptors.shape == (0, 256)


def test_training_validates_with_the_same_extractor(models, photo):
    """The module in PyTorch behind the runtime's extractor gives what the exported file gives."""
    method, network = _trained()
    ours = torch_extractor("residual", method, method.stages()[0], network, torch.device("cpu"), 100).extract(photo)
    theirs = load_extractor(str(models / "sift.onnx"), top_k=100).extract(photo)
    np.testing.assert_array_equal(ours.keypoints, theirs.keypoints)
    np.testing.assert_allclose(ours.descriptors, theirs.descriptors, atol=1e-5)


def test_a_frontend_tracks_with_it(models, photo):
    frontend = Frontend(str(models / "sift.onnx"), top_k=150)
    for number in range(3):
        output = frontend.process(Frame(number * 10**8, np.ascontiguousarray(photo[:, 8 * number : 8 * number + 280])))
    assert len(output.matches) > 50
    moved = output.features.keypoints[output.matches.query] - output.previous.keypoints[output.matches.train]
    np.testing.assert_allclose(np.median(moved, axis=0), [-8, 0], atol=0.5)
    assert (output.tracks.ages >= 3).sum() > 30


def test_inputs_that_do_not_fit_the_metadata_are_refused(models, tmp_path):
    with pytest.raises(InputError, match=r"takes image .*keypoints .*; expected 3 inputs, image .*, descriptors"):
        open_engine(_changed(models / "alone.onnx", tmp_path / "a.onnx", decoder_parameters={"fusion": True}))
    with pytest.raises(InputError, match=r"takes image .*descriptors .*; expected one input, image"):
        open_engine(_changed(models / "sift.onnx", tmp_path / "b.onnx", decoder="full", decoder_parameters={}))


@pytest.mark.parametrize(
    ("parameters", "options", "wrong"),
    [
        ({"detector": "orb"}, "", "unknown detector of .*'orb'; choose one of: rootsift, sift, surf"),
        ({"radius": 3}, "", "unknown setting of decoder 'points' 'radius'"),
        ({}, ":nms_radius=3", "unknown setting of .*'nms_radius'; choose one of: backend, contrast, threads, top_k"),
        ({}, ":threads=-1", "threads is -1"),
        ({}, ":contrast=high", "contrast=high: expected a number"),
    ],
)
def test_unusable_models_and_options_say_why(models, tmp_path, parameters, options, wrong):
    path = _changed(models / "sift.onnx", tmp_path / "model.onnx", decoder_parameters=parameters)
    with pytest.raises(InputError, match=wrong):
        load_extractor(f"{path}{options}")


def test_a_model_without_its_output_is_refused(models):
    class Lacking:
        backend, outputs = "none", ("scores",)
        metadata = open_engine(models / "sift.onnx").metadata

    from kp_frontend.extractors.learned import from_engine

    with pytest.raises(InputError, match=r"lacks the outputs \['point_descriptors'\]"):
        from_engine("lacking", Lacking(), {})


def test_maps_alone_do_not_decode(models):
    metadata = open_engine(models / "sift.onnx").metadata
    assert metadata.decoder_parameters["detector"] == PointsParameters().detector
    with pytest.raises(InputError, match=r"a classical detector finds the keypoints.*use load_extractor"):
        decode({"point_descriptors": np.zeros((1, 3, 256), np.float32)}, metadata, View(8, 8))


def test_no_points_leave_an_export_unharmed(tmp_path, photo):
    """A check image without a single SIFT point."""
    method, network = _trained()
    decoding = method.decoding()
    images = [photo, np.full((64, 64, 3), 9, np.uint8)]
    metadata = metadata_of("residual", method, network)
    figures = export_onnx(network, decoding.outputs, metadata, tmp_path / "m.onnx", images, decoding.points)
    assert figures["difference"] < TOLERANCE
    blob = network_input(images[1], metadata)
    assert blob.shape == (1, 3, 64, 64)
