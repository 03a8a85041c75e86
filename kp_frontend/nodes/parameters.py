"""Every parameter of every node: one table each, from which it is declared, checked, documented and configured."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from kp_frontend.engines.base import Backend
from kp_frontend.errors import InputError
from kp_frontend.messages import DESCRIPTOR_FORMATS, VINS_PROFILES
from kp_frontend.nodes.threads import OVERLAPS


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type is its default's.

    choices: the valid strings, () = any.  low, high: inclusive range of a number, None = open.
    live: may change while the node runs.
    """

    name: str
    default: bool | int | float | str
    description: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    live: bool = False

    def problem(self, value: object) -> str:
        """What is wrong with `value`, "" where nothing is."""
        if type(value) is not type(self.default):
            valid = f"one of: {', '.join(self.choices)}" if self.choices else _KINDS[type(self.default)]
            return f"{self.name} is {value!r}, expected {valid}"
        if self.choices and value not in self.choices:
            return f"unknown {self.name} {value!r}; choose one of: {', '.join(self.choices)}"
        if self.low is not None and self.high is not None and not self.low <= float(value) <= self.high:  # type: ignore[arg-type]
            return f"{self.name} is {value}, expected {self.low:g} to {self.high:g}"
        return ""

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        constraints = f"one of: {', '.join(self.choices)}" if self.choices else ""
        descriptor = ParameterDescriptor(
            name=self.name, description=self.description, additional_constraints=constraints, read_only=not self.live
        )
        if self.low is not None and self.high is not None:
            if isinstance(self.default, int):
                descriptor.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high))]
            else:
                descriptor.floating_point_range = [FloatingPointRange(from_value=self.low, to_value=self.high)]
        return descriptor


_KINDS = {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "a string"}

EXTRACTOR = (
    Parameter("features", "orb", "orb, sift, rootsift, gftt_lk, a model name, a path to .onnx; options after a colon"),
    Parameter("top_k", 1000, "most keypoints in a frame", low=1, high=20000),
    Parameter("backend", "auto", "what runs a learned model", choices=get_args(Backend)),
    Parameter("overlap", "auto", "begin a frame while the one before is still in work; auto: on 2 cores up",
              choices=OVERLAPS),
    Parameter("threads", 0, "of a learned model on a CPU; 0 = one a core", low=0, high=256),
    Parameter("opencv_threads", 0, "of OpenCV; 0 = one a core", low=0, high=256),
    Parameter("image_transport", "raw", "raw: `image`; compressed: `image/compressed`", choices=("raw", "compressed")),
    Parameter("calibration_file", "", "camera calibration YAML used instead of `camera_info`; empty = the topic"),
    Parameter("rectified", False, "images are rectified: use P of camera_info, and no distortion"),
    Parameter("descriptor_format", "float32", "of float descriptors in `features`; uint8 is a quarter of the size",
              choices=DESCRIPTOR_FORMATS, live=True),
    Parameter("vins_profile", "mono", "channels of `tracks_vins`", choices=VINS_PROFILES, live=True),
    Parameter("diagnostics_window", 300, "frames over which rate and latency are taken", low=10, high=100000),
    Parameter("frame_log", "", "file for a JSON object a line: timings and counts of every frame; empty = none"),
)

ODOMETRY = (
    *EXTRACTOR,
    Parameter("mode", "mono", "mono (up to scale), stereo (`right/image`) or rgbd (`depth`)",
              choices=("mono", "stereo", "rgbd")),
    Parameter("depth_transport", "raw", "raw: `depth`; compressed: `depth/compressedDepth`",
              choices=("raw", "compressed")),
    Parameter("baseline", 0.0, "metres from left to right camera; 0.0 = from `right/camera_info`", low=0.0, high=100.0),
    Parameter("sync_tolerance", 0.0, "seconds between an image and its depth or right image; 0.0 = half a frame",
              low=0.0, high=10.0),
    Parameter("world_frame", "odom", "frame of `odometry` and `path`: the first camera's, z forward"),
    Parameter("publish_tf", True, "broadcast world_frame → the image's frame, where tf2_ros is installed", live=True),
    Parameter("path_length", 1000, "poses kept in `path`", low=1, high=100000),
)

MATCHER = (
    Parameter("method", "mutual_nn", "how descriptors are matched", choices=("mutual_nn", "double_softmax"), live=True),
    Parameter("ratio", 1.0, "best distance / second best below which a match counts; 1.0 = no test",
              low=0.1, high=1.0, live=True),
    Parameter("max_distance", 0.0, "largest distance of a match (L2 of unit vectors, or bits); 0.0 = any",
              low=0.0, high=100000.0, live=True),
    Parameter("stereo_rows", 0.0, "row tolerance in pixels of a rectified pair, `features_a` left; 0.0 = no guide",
              low=0.0, high=100.0, live=True),
    Parameter("max_disparity", 256.0, "largest disparity in pixels with stereo_rows", low=1.0, high=10000.0, live=True),
    Parameter("sync_tolerance", 0.05, "seconds between the stamps of the two clouds", low=0.0, high=10.0),
    Parameter("diagnostics_window", 300, "frames over which rate and latency are taken", low=10, high=100000),
)


class Values:
    """A node's parameters as attributes, as they are now."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return self._node.get_parameter(name).value


def declare(node: Node, table: Iterable[Parameter]) -> Values:
    """Declare `table` on `node` and return the values by name.

    Raises InputError where a value given at start is not valid. Later such values are refused with a reason.
    A parameter that is in no table is warned of: a misspelt one would otherwise do nothing, silently.
    """
    known = {parameter.name: parameter for parameter in table}

    def check(changes: list[RosParameter]) -> SetParametersResult:
        problems = [known[change.name].problem(change.value) for change in changes if change.name in known]
        return SetParametersResult(successful=not any(problems), reason="; ".join(filter(None, problems)))

    node.add_on_set_parameters_callback(check)
    for parameter in known.values():
        try:
            node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            given = _overrides(node)[parameter.name].value
            raise InputError(parameter.problem(given) or str(error)) from error
    _warn_of_unknown(node, known)
    return Values(node)


def _overrides(node: Node) -> dict[str, RosParameter]:
    # rclpy has no public name for them.
    return getattr(node, "_parameter_overrides", {})


def _warn_of_unknown(node: Node, known: dict[str, Parameter]) -> None:
    for name in _overrides(node):
        if name not in known and not node.has_parameter(name) and not name.startswith("qos_overrides."):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"this node has: {', '.join(known)}"
            node.get_logger().warning(f"unknown parameter {name!r} has no effect; {hint}")


def describe(table: Iterable[Parameter]) -> str:
    """Lines for --help: name, default, description, valid values."""
    lines = []
    for parameter in table:
        shown = repr(parameter.default).lower() if isinstance(parameter.default, bool) else parameter.default
        valid = f" [{' | '.join(parameter.choices)}]" if parameter.choices else ""
        if parameter.low is not None:
            valid = f" [{parameter.low:g} … {parameter.high:g}]"
        lines.append(f"  {parameter.name + ' := ' + str(shown):<34} {parameter.description}{valid}")
    return "\n".join(lines)
