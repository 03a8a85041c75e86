"""Weights to start from: a checkpoint of ours, or a weight file as its authors published it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kp_frontend.errors import InputError
from kp_training.runs import load_trained, read_weights

WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_initial(network: nn.Module, file: Path) -> None:
    """Put the weights of `file` into `network`.

    Raises InputError where they are neither a checkpoint of ours with this network nor a published layout that the
    network can read.
    """
    content = read_weights(file)
    if isinstance(content, Mapping) and "kp_training" in content:
        load_trained(network, content, file)
        return
    state = _unwrap(content)
    if state is None or not hasattr(network, "from_published"):
        raise InputError(f"{file} holds no weights that {type(network).__name__} reads; give a checkpoint of ours with "
                         "the same network" + (" or the published file" if hasattr(network, "from_published") else ""))
    network.load_state_dict(network.from_published(state))


def _unwrap(content: Any) -> dict[str, Tensor] | None:
    """The dict of tensors in a file, within the wrappings that public code uses; None where there is none."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        return None
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return state or None
