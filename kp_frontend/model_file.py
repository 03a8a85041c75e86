"""What a model file says of itself: the JSON object under ``metadata_props["kp_frontend"]``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kp_frontend.errors import InputError

KEY = "kp_frontend"
SCHEMA_VERSION = 1
CHOICES = {
    "color": ("gray", "rgb"),
    "profile": ("dense", "sparse"),
    "input_dtype": ("float32", "uint8"),
    "precision": ("fp32", "fp16", "int8"),
    "quantized_for": ("", "cpu", "tensorrt"),
}
"""Valid values of the metadata that name something."""


@dataclass(frozen=True)
class ModelMetadata:
    """Everything the runtime must know to feed a network and decode what it gives.

    method: name of the training method (``kp2d``).  variant: its preset and network (``v2-compact``).
    profile: ``dense`` (the runtime decodes maps) or ``sparse`` (keypoints come out of the graph).
    decoder: name in ``kp_frontend.decoding.DECODERS``; decoder_parameters: its keyword arguments.
    stride: pixels per cell of the descriptor map.  descriptor_size, metric: as in Features.
    color: ``gray`` (1 channel) or ``rgb`` (3).  size_multiple: height and width are padded to it.
    height, width: the fixed input size, or 0 where it is dynamic.
    input_dtype: of the input ``image``: ``float32`` in [0, 1], or ``uint8``, normalised in the graph.
    precision: of the network: ``fp32``, ``fp16`` or ``int8``; quantized_for: what an int8 file was made for, ``cpu``
        or ``tensorrt``.
    top_k: of the sparse profile, the number of rows that every output has; 0 = dense.
    checks: figures of the comparison with PyTorch at export, by name.
    data: what the network was trained on.  licence: of the weights.
    metrics: figures at export, by name.  revision: git revision of the code that exported it.
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
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                expected = " or ".join(repr(value) for value in valid)
                raise InputError(f"model metadata: {name} is {getattr(self, name)!r}, expected {expected}")
        if self.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"model metadata has schema version {self.schema_version}, this runtime reads {SCHEMA_VERSION}; "
                "export the model again with this version's `kp_training export`"
            )

    @property
    def channels(self) -> int:
        """Channels of the input image."""
        return 1 if self.color == "gray" else 3

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
