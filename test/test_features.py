"""The data classes: what they accept, what they refuse, what they keep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kp_frontend.errors import InputError
from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.model_file import ModelMetadata


def features(count: int = 3, metric: str = "l2") -> Features:
    descriptors = np.zeros((count, 8), np.uint8 if metric == "hamming" else np.float32)
    keypoints = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return Features(keypoints, np.arange(count, dtype=np.float32), descriptors, metric)


def test_top_k_is_best_first_and_keeps_rows_together():
    best = features(4).top_k(2)
    assert best.scores.tolist() == [3, 2]
    assert best.keypoints.tolist() == [[6, 7], [4, 5]]
    assert (best.angles == -1).all()


def test_ties_keep_their_order():
    equal = Features(np.arange(8, dtype=np.float32).reshape(4, 2), np.ones(4, np.float32), np.zeros((4, 0), np.float32))
    assert equal.top_k(3).keypoints[:, 0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"keypoints": np.zeros((3, 3), np.float32)},
        {"keypoints": np.zeros((3, 2))},
        {"scores": np.zeros(2, np.float32)},
        {"descriptors": np.zeros((3, 8), np.uint8)},
        {"metric": "cosine"},
        {"sizes": np.zeros(4, np.float32)},
    ],
)
def test_features_refuse_wrong_shapes_types_and_metrics(change):
    good = features()
    values = {"keypoints": good.keypoints, "scores": good.scores, "descriptors": good.descriptors, "metric": "l2"}
    with pytest.raises(ValueError, match=next(iter(change))):
        Features(**{**values, **change})


def test_empty_ones_have_the_right_widths():
    assert Features.empty(32, "hamming").descriptors.shape == (0, 32)
    assert Features.empty(32, "hamming").descriptors.dtype == np.uint8
    assert len(Matches.empty()) == 0
    assert Tracks.empty(4).ids.tolist() == [0] * 4


def test_matches_select_by_mask():
    matches = Matches(np.arange(3), np.arange(3)[::-1].copy(), np.arange(3, dtype=np.float32))
    assert matches.select(np.array([True, False, True])).train.tolist() == [2, 0]
    with pytest.raises(ValueError, match="query"):
        Matches(np.zeros(2, np.int32), np.zeros(2, np.int64), np.zeros(2, np.float32))


def test_metadata_survives_the_file():
    metadata = ModelMetadata("kp2d", "v2", "full", 64, 8, decoder_parameters={"nms_radius": 2}, metrics={"mma3": 0.4})
    assert ModelMetadata.from_json(metadata.to_json(), "m.onnx") == metadata


GOOD = ModelMetadata("kp2d", "v2", "full", 64, 8).to_json()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "no 'kp_frontend' metadata"),
        ("{", "not readable"),
        ('{"method": "kp2d"}', "not readable"),
        (json.dumps({"colour": 1}), "unknown keys"),
        (GOOD.replace('"schema_version": 1', '"schema_version": 9'), "schema"),
        (GOOD.replace('"gray"', '"bgr"'), "color"),
    ],
)
def test_metadata_that_is_not_ours_says_what_to_do(text, part):
    with pytest.raises(InputError, match=part):
        ModelMetadata.from_json(text, "m.onnx")


@pytest.mark.parametrize(("name", "value"), [
    ("stride", "8"), ("stride", 0), ("stride", True), ("size_multiple", 0), ("size_multiple", "8"), ("height", "480"),
    ("height", -8), ("height", 480), ("top_k", "5"), ("top_k", -1), ("descriptor_size", "64"), ("descriptor_size", -1),
    ("decoder", ["a"]), ("decoder_parameters", [1]), ("metric", "zz"), ("checks", 3), ("color", ["gray"]),
    ("schema_version", "1"),
])
def test_metadata_of_a_wrong_type_or_range_is_named(name, value):
    text = json.dumps({**json.loads(GOOD), name: value})
    with pytest.raises(InputError, match=rf"{name} is .*expected.*; export the model again"):
        ModelMetadata.from_json(text, "m.onnx")
