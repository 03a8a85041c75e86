"""What a model file says of itself: the JSON object under ``metadata_props["kp_frontend"]``."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kp_frontend.errors import InputError

KEY = "kp_frontend"
SCHEMA_VERSION = 1
_PROPERTIES = 14  # metadata_props of onnx.proto's ModelProto: messages of a key (1) and a value (2)
CHOICES = {
    "color": ("gray", "rgb"),
    "metric": ("l2",),  # engines give float32, no bit strings
    "profile": ("dense", "sparse"),
    "input_dtype": ("float32", "uint8"),
    "precision": ("fp32", "fp16", "int8"),
    "quantized_for": ("", "cpu", "tensorrt"),
}
"""Valid values of the metadata that name something."""
_KINDS: dict[str, tuple[type, str]] = {
    "str": (str, "a text"), "int": (int, "a whole number"), "dict": (dict, "an object of names and values"),
}
_LEAST = {"stride": 1, "size_multiple": 1, "descriptor_size": 0, "height": 0, "width": 0, "top_k": 0}
_EXPORT_AGAIN = "export the model again with this version's `kp_training export`"


@dataclass(frozen=True)
class ModelMetadata:
    """Everything the runtime must know to feed a network and decode what it gives.

    method: name of the training method (``kp2d``).  variant: its preset and network (``v2-compact``).
    profile: ``dense`` (the runtime decodes maps) or ``sparse`` (keypoints come out of the graph).
    decoder: name in ``kp_frontend.decoding.DECODERS``; decoder_parameters: its keyword arguments.
    stride: pixels per cell of the descriptor map.  descriptor_size: as in Features, 0 = the network only detects.
    metric: as in Features.
    color: ``gray`` (1 channel) or ``rgb`` (3).  size_multiple: height and width are padded to it.
    height, width: the fixed input size, or 0 where it is dynamic.
    input_dtype: of the input ``image``: ``float32`` in [0, 1], or ``uint8``, normalised in the graph.
    precision: of the network: ``fp32``, ``fp16`` or ``int8``; quantized_for: what an int8 file was made for, ``cpu``
        or ``tensorrt``.
    top_k: of the sparse profile, the number of rows that every output has; 0 = dense.
    checks: figures of the comparison with PyTorch at export, by name.
    data: what the network was trained on.  licence: of the weights.
    metrics: figures at export, by name.  revision: git revision of the code that exported it.
    Raises InputError for a value of another type or out of range.
    """

    method: str
    variant: str
    decoder: str
    descriptor_size: int
    stride: int
    color: str = "gray"
    metric: str = "l2"
    profile: str = "dense"
    size_multiple: int = 32
    height: int = 0
    width: int = 0
    input_dtype: str = "float32"
    precision: str = "fp32"
    quantized_for: str = ""
    top_k: int = 0
    decoder_parameters: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    licence: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    revision: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, (kind, expected) = getattr(self, entry.name), _KINDS[str(entry.type).partition("[")[0]]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(f"model metadata: {entry.name} is {value!r}, expected {expected}; {_EXPORT_AGAIN}")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"model metadata: {name} is {getattr(self, name)}, expected at least {least}; {_EXPORT_AGAIN}"
                )
        if (self.height == 0) != (self.width == 0):
            raise InputError(f"model metadata: height is {self.height} and width {self.width}, expected both or none "
                             f"to be fixed; {_EXPORT_AGAIN}")
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                expected = " or ".join(repr(value) for value in valid)
                raise InputError(
                    f"model metadata: {name} is {getattr(self, name)!r}, expected {expected}; {_EXPORT_AGAIN}"
                )
        if self.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"model metadata has schema version {self.schema_version}, this runtime reads {SCHEMA_VERSION}; "
                + _EXPORT_AGAIN
            )

    @property
    def channels(self) -> int:
        """Channels of the input image."""
        return 1 if self.color == "gray" else 3

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, pixels, of what the network gets of such an image: the next multiples of its own."""
        multiple = self.size_multiple
        return height + -height % multiple, width + -width % multiple

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None, source: str) -> ModelMetadata:
        """Parse the metadata of the model file `source`.

        Raises InputError where there is none, or where it is not what this runtime writes.
        """
        advice = "export the network with `python -m kp_training export RUN --output MODEL.onnx`"
        if not text:
            raise InputError(f"{source} has no '{KEY}' metadata, so it cannot be decoded; {advice}")
        try:
            values = json.loads(text)
            unknown = set(values) - {entry.name for entry in fields(cls)}
            if unknown:
                raise InputError(f"{source}: metadata has unknown keys {sorted(unknown)}; {advice}")
            return cls(**values)
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{source}: metadata is not readable ({error}); {advice}") from error


def read_metadata(path: Path) -> ModelMetadata:
    """What the ONNX file `path` says of itself, read without any library: a runtime has one of several, or none.

    Raises InputError for a file that is cut short or no ONNX file, and for one without our metadata.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            properties = [data[begin:end] for number, begin, end in _fields(data) if number == _PROPERTIES]
        texts = [{number: entry[begin:end].decode() for number, begin, end in _fields(entry)} for entry in properties]
    except OSError as error:
        raise InputError(f"model {path} cannot be read ({error.strerror})") from error
    except (ValueError, IndexError) as error:  # the end of the file cuts a number: IndexError
        reason = "cut short" if isinstance(error, IndexError) else str(error)
        raise InputError(f"model {path} is not an ONNX file that can be run ({reason})") from error
    return ModelMetadata.from_json({text.get(1): text.get(2) for text in texts}.get(KEY), f"model {path}")


def _fields(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """The fields of a protobuf message: number, and where in `data` its content begins and ends.

    Source: "Encoding" in the documentation of Protocol Buffers.
    """
    place = 0
    while place < len(data):
        tag, begin = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == 2:
            length, begin = _varint(data, begin)
        elif kind == 0:
            length = _varint(data, begin)[1] - begin
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("no protobuf")
        place = begin + length
        if place > len(data):
            raise ValueError("cut short")
        yield number, begin, place


def _varint(data: bytes | mmap.mmap, place: int) -> tuple[int, int]:
    """The number at `place`, seven bits a byte, and where it ends; ValueError for more than the 64 bits it may have."""
    value = shift = 0
    while True:
        if shift > 63:
            raise ValueError("no protobuf")
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
