"""Extractors by name: what they promise, their options, and what they refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import skimage.data

from kp_frontend import load_extractor
from kp_frontend.errors import InputError
from kp_frontend.extractors import parse_spec
from kp_frontend.extractors.learned import network_input

CLASSICAL = ["orb", "sift", "rootsift", "sift:dedupe=true"]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return cv2.cvtColor(skimage.data.astronaut()[:300, 60:460], cv2.COLOR_RGB2BGR)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from tiny_models import cells_metadata, cells_model, full_metadata, full_model

    folder = tmp_path_factory.mktemp("models")
    full_model(folder / "full.onnx", full_metadata())
    full_model(folder / "full_rgb.onnx", full_metadata(color="rgb"), channels=3)
    full_model(folder / "fixed.onnx", full_metadata(height=64, width=96))
    full_model(folder / "sparse.onnx", full_metadata(profile="sparse"))
    full_model(folder / "wrong_decoder.onnx", cells_metadata(color="gray"))
    cells_model(folder / "cells.onnx", cells_metadata())
    return folder


def check(features, extractor, top_k):
    assert 0 < len(features) <= top_k
    assert features.metric == extractor.metric
    assert features.descriptors.shape[1] == extractor.descriptor_size
    assert (np.diff(features.scores) <= 0).all()
    if features.metric == "l2":
        np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("spec", [*CLASSICAL, "kp2d_compact:backend=onnxruntime", "kp2d_compact_int8:backend=openvino"])
def test_threads_that_extract_at_once_do_not_disturb_each_other(photo, spec):
    if "backend=" in spec:
        pytest.importorskip(spec.partition("backend=")[2])
    extractor = load_extractor(spec, top_k=200, threads=1)
    assert extractor.concurrent
    images = [np.ascontiguousarray(photo[:240, shift : shift + 320]) for shift in range(0, 80, 5)]
    expected = [extractor.extract(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(extractor.extract, images * 2), expected * 2):
            np.testing.assert_array_equal(found.keypoints, alone.keypoints)
            np.testing.assert_array_equal(found.descriptors, alone.descriptors)


@pytest.mark.parametrize("spec", CLASSICAL)
@pytest.mark.parametrize("top_k", [50, 800])
def test_classical_extractors_keep_the_best(photo, spec, top_k):
    extractor = load_extractor(spec, top_k=top_k)
    assert extractor.name == spec
    features = extractor.extract(photo)
    check(features, extractor, top_k)
    assert len(features) == 50 or top_k > 50
    assert features.sizes.min() > 0
    assert 0 <= features.angles.min() <= features.angles.max() < 360
    again = extractor.extract(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))
    np.testing.assert_array_equal(again.keypoints, features.keypoints)


@pytest.mark.parametrize("spec", CLASSICAL)
def test_classical_descriptors_match_a_shifted_image(photo, spec):
    first = load_extractor(spec).extract(photo[:, :-16])
    second = load_extractor(spec).extract(photo[:, 16:])
    norm = cv2.NORM_HAMMING if first.metric == "hamming" else cv2.NORM_L2
    matches = cv2.BFMatcher(norm, crossCheck=True).match(first.descriptors, second.descriptors)
    shift = np.array([first.keypoints[m.queryIdx] - second.keypoints[m.trainIdx] for m in matches])
    assert (np.abs(shift - [16, 0]).max(axis=1) < 2).mean() > 0.7


@pytest.mark.parametrize("spec", CLASSICAL)
def test_no_features_without_texture_or_outside_the_mask(photo, spec):
    extractor = load_extractor(spec)
    for flat in (np.zeros((480, 640), np.uint8), np.full((1, 1), 255, np.uint8), np.full((40, 9, 3), 90, np.uint8)):
        assert len(extractor.extract(flat)) == 0
        assert extractor.extract(flat).descriptors.shape == (0, extractor.descriptor_size)
    mask = np.zeros(photo.shape[:2], np.uint8)
    assert len(extractor.extract(photo, mask)) == 0
    mask[:, 200:] = 255
    assert extractor.extract(photo, mask).keypoints[:, 0].min() > 198


def test_sift_repeats_locations_unless_deduped(photo):
    def repeated(spec):
        points = load_extractor(spec, top_k=300).extract(photo).keypoints
        return len(points) - len(np.unique(points, axis=0))

    assert repeated("sift") > 10
    assert repeated("sift:dedupe=yes") == 0


def test_rootsift_is_the_root_of_sift(photo):
    sift, root = load_extractor("sift").extract(photo), load_extractor("rootsift").extract(photo)
    expected = np.sqrt(sift.descriptors / sift.descriptors.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(root.descriptors, expected, atol=1e-5)


@pytest.mark.parametrize("bad", [None, np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 5), np.uint8)])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(InputError, match="expected H×W or H×W×3 uint8"):
        load_extractor("orb").extract(bad)


def test_what_opencv_cannot_search_is_refused_in_one_line(photo):
    with pytest.raises(InputError, match="orb:levels=8,scale=4: OpenCV cannot search an image of 400×300"):
        load_extractor("orb:levels=8,scale=4").extract(photo)


def test_a_mask_of_another_size_is_refused(photo):
    with pytest.raises(InputError, match="mask"):
        load_extractor("orb").extract(photo, np.ones((3, 3), np.uint8))


def test_specs():
    assert parse_spec("orb") == ("orb", {})
    assert parse_spec("dir/a.onnx:top_k=5, detector=gftt") == ("dir/a.onnx", {"top_k": "5", "detector": "gftt"})
    assert len(load_extractor("orb:top_k=7", top_k=500).extract(skimage.data.camera())) == 7


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("", "names no extractor"),
        ("orb:top_k", "'top_k' is not a new key=value"),
        ("orb:top_k=1,top_k=2", "not a new key=value"),
        ("orb:top_k=0", "top_k is 0, expected 1 to 1000000"),
        ("sift:top_k=10000000000", "top_k is 10000000000, expected 1 to 1000000"),
        ("orb:top_k=many", "top_k=many: expected a whole number"),
        ("orb:scale=nan", "scale=nan: expected a number"),
        ("orb:levels=0", "levels in 1 … 32"),
        ("orb:levels=33", "levels in 1 … 32"),
        ("orb:scale=4.1", "scale above 1 and at most 4"),
        ("orb:size=3", "unknown setting of orb 'size'; choose one of: backend, fast_threshold, levels"),
        ("orb:backend=gpu", "backend=gpu: expected one of: auto, tensorrt"),
        ("sift:dedupe=maybe", "expected true or false"),
        ("superb", "unknown features 'superb'; choose one of: .*gftt_lk, .*orb, rootsift, sift"),
        ("gftt_lk", r"is a tracker \(optical flow\)"),
        ("nowhere/model.onnx", "does not exist"),
        ("model.onnx", "does not exist"),
    ],
)
def test_unusable_specs_say_why(spec, wrong):
    with pytest.raises(InputError, match=wrong):
        load_extractor(spec)


def test_options_from_python_are_checked_too():
    assert load_extractor("orb", levels=3, scale=1.5).name == "orb"
    for options in ({"levels": 2.5}, {"levels": True}, {"scale": "wide"}):
        with pytest.raises(InputError, match="expected"):
            load_extractor("orb", **options)


@pytest.mark.parametrize("name", ["full", "full_rgb", "cells"])
@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("detector", ["network", "gftt"])
def test_learned_extractors_take_any_image(models, photo, name, colour, detector):
    extractor = load_extractor(f"{models / name}.onnx:detector={detector}", top_k=200, threads=1)
    features = extractor.extract(photo[:203, :301] if colour else photo[:203, :301, 1])
    check(features, extractor, 200)
    assert (features.keypoints >= 0).all()
    assert (features.keypoints <= [300, 202]).all()
    again = extractor.extract(photo[:203, :301] if colour else photo[:203, :301, 1])
    np.testing.assert_array_equal(again.descriptors, features.descriptors)


def test_learned_keypoints_are_the_networks(models):
    """The tiny network's score is the grey image itself: bright dots are its keypoints."""
    image = np.full((70, 90), 10, np.uint8)
    image[40, 20], image[30, 60], image[1, 50] = 250, 200, 255  # the last lies in the border
    features = load_extractor(str(models / "full.onnx")).extract(image)
    np.testing.assert_array_equal(features.keypoints, [[20, 40], [60, 30]])
    np.testing.assert_allclose(features.scores, [250 / 255, 200 / 255], rtol=1e-6)
    assert len(load_extractor(f"{models / 'full.onnx'}:border=0").extract(image)) == 3
    assert len(load_extractor(f"{models / 'full.onnx'}:threshold=0.9").extract(image)) == 1
    mask = np.ones_like(image)
    mask[35:] = 0
    np.testing.assert_array_equal(load_extractor(str(models / "full.onnx")).extract(image, mask).keypoints, [[60, 30]])


def test_network_points_and_corners_share_descriptors(models, photo):
    """A descriptor depends on the image and the place, not on who found the point."""
    from kp_frontend.decoding import sample_descriptors
    from kp_frontend.engines import open_engine

    extractor = load_extractor(f"{models / 'full.onnx'}:detector=gftt")
    features = extractor.extract(photo)
    engine = open_engine(models / "full.onnx")
    maps = engine.run(network_input(photo, engine.metadata))
    np.testing.assert_allclose(
        features.descriptors, sample_descriptors(maps["descriptors"][0], (features.keypoints - 3.5) / 8), atol=1e-6
    )
    gray = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    theirs = cv2.goodFeaturesToTrack(gray, 20, 1e-3, 3, blockSize=3).reshape(-1, 2)
    nearest = np.linalg.norm(features.keypoints[None, :100] - theirs[:, None], axis=2).min(axis=1)
    assert (nearest <= 1).mean() > 0.7


def test_network_describes_points_of_another_extractor(models, photo):
    """As in the swaps of PoSFeat's table: one model's keypoints with another's descriptors."""
    full = str(models / "full.onnx")
    mask = np.ones(photo.shape[:2], np.uint8)
    mask[:, :80] = 0
    found = load_extractor(f"{full}:detector=orb,top_k=50").extract(photo, mask)
    orb = load_extractor("orb", top_k=50).extract(photo, mask)
    assert 0 < len(found) <= 50
    np.testing.assert_array_equal(found.keypoints, orb.keypoints)
    np.testing.assert_array_equal(found.scores, orb.scores)
    itself = load_extractor(f"{full}:detector={full}").extract(photo)
    own = load_extractor(full).extract(photo)
    np.testing.assert_array_equal(itself.keypoints, own.keypoints)
    np.testing.assert_array_equal(itself.descriptors, own.descriptors)
    with pytest.raises(InputError, match="detector=nope is neither network or gftt nor an extractor: unknown features"):
        load_extractor(f"{full}:detector=nope")


def test_network_input_by_hand():
    from tiny_models import full_metadata

    image = np.arange(15, dtype=np.uint8).reshape(3, 5)
    gray = network_input(image, full_metadata(size_multiple=4))
    assert gray.shape == (1, 1, 4, 8)
    np.testing.assert_allclose(gray[0, 0, :3, :5] * 255, image, atol=1e-4)
    np.testing.assert_allclose(gray[0, 0, 3, 5:] * 255, 14, atol=1e-4)  # the edge goes on
    colour = np.dstack([image, image + 100, image + 200])
    rgb = network_input(colour, full_metadata(size_multiple=1, color="rgb"))
    np.testing.assert_allclose(rgb[0, 0] * 255, image + 200, atol=1e-4)


def test_bytes_for_a_network_are_copied_only_where_they_must():
    from tiny_models import full_metadata

    image = np.arange(32, dtype=np.uint8).reshape(4, 8)
    gray = network_input(image, full_metadata(size_multiple=4, input_dtype="uint8"))
    assert gray.shape == (1, 1, 4, 8)
    assert np.shares_memory(gray, image)
    padded = network_input(image[:3, :7], full_metadata(size_multiple=4, input_dtype="uint8"))
    assert padded.flags.c_contiguous
    np.testing.assert_array_equal(padded[0, 0], np.pad(image[:3, :7], ((0, 1), (0, 1)), "edge"))
    colour = np.dstack([image, image + 100, image + 200])
    rgb = network_input(colour, full_metadata(size_multiple=1, color="rgb", input_dtype="uint8"))
    np.testing.assert_array_equal(rgb[0], colour[..., ::-1].transpose(2, 0, 1))
    assert rgb.dtype == np.uint8
    strided = network_input(image[:, ::2], full_metadata(size_multiple=4, input_dtype="uint8"))
    assert strided.flags.c_contiguous


def test_learned_extractors_find_nothing_without_texture(models):
    for name in ("full", "cells"):
        for flat in (np.zeros((64, 96), np.uint8), np.full((64, 96, 3), 255, np.uint8)):
            for detector in ("network", "gftt"):
                features = load_extractor(f"{models / name}.onnx:detector={detector}").extract(flat)
                assert features.descriptors.shape == (0, 4)


def test_a_model_of_fixed_size_refuses_others(models, photo):
    extractor = load_extractor(str(models / "fixed.onnx"))
    assert len(extractor.extract(photo[:64, :96]))
    assert len(extractor.extract(photo[:60, :90]))  # padding makes it fit
    with pytest.raises(InputError, match="image is 200×100, but the model was exported for 96×64 only"):
        extractor.extract(photo[:100, :200])


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("sparse.onnx", r"lacks the outputs \['keypoints'\] of decoder 'full', sparse profile"),
        ("wrong_decoder.onnx", r"lacks the outputs \['offsets'\]"),
        ("full.onnx:detector=fast", "detector=fast is neither network or gftt nor an extractor"),
        ("full.onnx:nms_radius=-1", "expected sizes ≥ 0"),
        ("cells.onnx:border=3", "decoder 'cells'"),
        ("full.onnx:backend=tpu", "backend=tpu: expected one of: auto, tensorrt"),
    ],
)
def test_unusable_models_and_options_say_why(models, spec, wrong):
    with pytest.raises(InputError, match=wrong):
        load_extractor(str(models / spec))
