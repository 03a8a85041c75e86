"""Weights in files: of checkpoints of ours, and as their authors published them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError

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


def average_with(network: nn.Module, file: Path, share: float) -> None:
    """Put `network` between the weights of `file` (share 0) and its own (share 1).

    What a network was refined for it keeps for the most part, and what it could do before (Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022); weights that were not trained from one another have no such between.
    Raises InputError as `load_initial` does.
    """
    other = copy.deepcopy(network)
    load_initial(other, file)
    before = other.state_dict()
    network.load_state_dict({name: before[name].lerp(values, share) if values.is_floating_point() else values
                             for name, values in network.state_dict().items()})


def _unwrap(content: Any) -> dict[str, Tensor] | None:
    """The dict of tensors in a file, within the wrappings that public code uses; None where there is none."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        return None
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return state or None


def read_weights(file: Path) -> Any:
    """What a PyTorch file holds, of plain values and tensors only; InputError where it is anything else."""
    if not file.is_file():
        raise InputError(f"no weight file {file}")
    if file.suffix in (".onnx", ".engine"):
        raise InputError(f"{file} is a model for the runtime; give the run folder or .ckpt that it was exported from")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(" In PyTorch 2.6")[0]  # its advice
        raise InputError(f"{file} cannot be read as a checkpoint ({reason}); train again or give another") from error


def trained_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's averaged weights by name, or its last where none are kept."""
    state = checkpoint["state_dict"]
    prefix = "average." if any(key.startswith("average.") for key in state) else "network."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_trained(network: nn.Module, checkpoint: Mapping[str, Any], source: object) -> None:
    """Put a checkpoint's averaged weights, or its last where none are kept, into `network`.

    Raises InputError, naming `source`, where they do not fit.
    """
    try:
        network.load_state_dict(trained_weights(checkpoint))
    except RuntimeError as error:
        raise InputError(f"{source}: the weights do not fit {type(network).__name__} "
                         f"({' '.join(str(error).split())[:160]} …); they are of another network or version") from error
