"""Tiny ONNX networks with known outputs, in the layouts that the decoders read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kp_frontend.model_file import KEY, ModelMetadata

SIZE = 4  # of the descriptors


def full_metadata(**changes) -> ModelMetadata:
    """Metadata of `full_model`: scores are the image itself, descriptors a projection of 8×8 blocks."""
    parameters = {"nms_radius": 2, "border": 2, "refine_radius": 0, "threshold": 0.2}
    values = {
        "method": "test", "variant": "full", "decoder": "full", "descriptor_size": SIZE, "stride": 8,
        "size_multiple": 16, "decoder_parameters": parameters,
    }
    return ModelMetadata(**{**values, **changes})


def cells_metadata(**changes) -> ModelMetadata:
    """Metadata of `cells_model`: a score and a constant offset a cell of 8 pixels, descriptors at a quarter."""
    values = {
        "method": "test", "variant": "cells", "decoder": "cells", "descriptor_size": SIZE, "stride": 4, "color": "rgb",
        "size_multiple": 8, "decoder_parameters": {"cell": 8, "cross_ratio": 2.0, "align_corners": True},
    }
    return ModelMetadata(**{**values, **changes})


def full_model(path: Path, metadata: ModelMetadata | None, channels: int = 1, name: str = "image") -> Path:
    """Write a network of decoder ``full``; without metadata where it is None."""
    weights = np.random.default_rng(0).standard_normal((SIZE, channels, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[1], keepdims=1),
        helper.make_node("Conv", ["pixels", "weights"], ["descriptors"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    constants = {"weights": weights}
    if metadata is not None and metadata.input_dtype == "uint8":
        constants["level"] = np.float32(1 / 255)
        first = [helper.make_node("Cast", [name], ["levels"], to=TensorProto.FLOAT),
                 helper.make_node("Mul", ["levels", "level"], ["pixels"])]
    else:
        first = [helper.make_node("Identity", [name], ["pixels"])]
    return _write(path, metadata, channels, name, [*first, *nodes], constants, ["scores", "descriptors"])


def cells_model(path: Path, metadata: ModelMetadata | None, channels: int = 3) -> Path:
    """Write a network of decoder ``cells``: scores are the mean of a cell, the offset is (0.5, -0.25) everywhere."""
    blocks = np.random.default_rng(1).standard_normal((SIZE, channels, 4, 4)).astype(np.float32)
    mean = np.full((1, channels, 8, 8), 1 / (64 * channels), np.float32)
    offset = np.zeros((2, channels, 8, 8), np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "mean"], ["scores"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["image", "nothing", "shift"], ["offsets"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["image", "blocks"], ["descriptors"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    constants = {"mean": mean, "nothing": offset, "shift": np.array([0.5, -0.25], np.float32), "blocks": blocks}
    return _write(path, metadata, channels, "image", nodes, constants, ["scores", "offsets", "descriptors"])


def points_metadata(**changes) -> ModelMetadata:
    """Metadata of `points_model`, which takes no descriptors."""
    values = {
        "method": "test", "variant": "points", "decoder": "points", "descriptor_size": 3, "stride": 8,
        "size_multiple": 16, "decoder_parameters": {"fusion": False},
    }
    return ModelMetadata(**{**values, **changes})


def points_model(path: Path, metadata: ModelMetadata | None, channels: int = 1) -> Path:
    """Write a network of decoder ``points``: x, y and 0 of a point, plus the mean of the image."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["keypoints", "widen"], ["wide"]),
        helper.make_node("Add", ["wide", "mean"], ["point_descriptors"]),
    ]
    constants = {"widen": np.eye(2, 3, dtype=np.float32)}
    return _write(path, metadata, channels, "image", nodes, constants, ["point_descriptors"], ["keypoints"])


def _write(path, metadata, channels, name, nodes, constants, outputs, points=()) -> Path:
    uint8 = metadata is not None and metadata.input_dtype == "uint8"
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info(name, kind, [1, channels, "height", "width"]),
         *(helper.make_tensor_value_info(point, TensorProto.FLOAT, [1, "points", 2]) for point in points)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {KEY: metadata.to_json()})
    onnx.save(model, path)
    return path
