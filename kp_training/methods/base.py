"""What a method is: which network, which pairs, which loss, which decoding."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.pairs import PairBatch, PairConfig


@dataclass(frozen=True)
class Decoding:
    """How the runtime turns a network's outputs into Features; see ModelMetadata."""

    decoder: str
    parameters: dict[str, Any]
    outputs: tuple[str, ...]


class Method(Protocol):
    """One method: built from its own frozen config dataclass, it declares all that training and export need.

    Config: the dataclass, of plain values with the paper's defaults.  variant: short name of this configuration.
    """

    Config: type
    config: Any
    variant: str

    def network(self) -> nn.Module:
        """A new network with random weights."""
        ...

    def pairs(self) -> PairConfig:
        """How training pairs are made."""
        ...

    def losses(self, network: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is what is minimised, the others are watched."""
        ...

    def deployed(self, network: nn.Module) -> nn.Module:
        """The module that is exported: image B×C×H×W in [0, 1] → the outputs that `decoding` names."""
        ...

    def decoding(self) -> Decoding:
        """How the runtime decodes those outputs."""
        ...


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def read_config(config_class: type, values: dict[str, Any], source: str) -> Any:
    """`config_class` with `values`, converted from text to each field's type.

    Raises InputError for an unknown key, listing the valid ones, and for a value that does not fit.
    """
    types = {entry.name: type(entry.default) for entry in fields(config_class)}
    converted = {}
    for key, value in values.items():
        if key not in types:
            raise unknown_name(f"{source} setting", key, types)
        converted[key] = _convert(key, value, types[key])
    return config_class(**converted)


def _convert(key: str, value: Any, kind: type) -> Any:
    if kind is bool and str(value).lower() in ("true", "false", "1", "0"):
        return str(value).lower() in ("true", "1")
    try:
        if kind in (int, float, str) and not isinstance(value, (bool, dict, list)):
            converted = kind(value)
            if kind is str or (np.isfinite(float(value)) and converted == float(value)):
                return converted
    except ValueError:
        pass
    raise InputError(f"{key}={value}: expected {NAMES.get(kind, kind.__name__)}")


def images_to_float(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Both views, B×C×H×W float32 in [0, 1]."""
    return batch.image0.float() / 255, batch.image1.float() / 255


def gumbel_like(values: Tensor) -> Tensor:
    """Gumbel noise of the shape of `values`."""
    return -torch.log(-torch.log(torch.rand_like(values).clamp(1e-6, 1 - 1e-6)))
