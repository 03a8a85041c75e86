"""What a method is: its stages, each with a network, data and losses, and how the runtime decodes the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kp_frontend.errors import InputError
from kp_training.data.images import Images
from kp_training.data.posed import PosedScene


@dataclass(frozen=True)
class Decoding:
    """How the runtime turns a network's outputs into Features; see ModelMetadata.

    points: H×W×3 BGR uint8 image → what the network takes beside it, by input name and in that order; None = nothing.
    """

    decoder: str
    parameters: dict[str, Any]
    outputs: tuple[str, ...]
    points: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None


def no_scenes(height: int, width: int) -> Sequence[PosedScene]:
    """Where a context has no posed scenes."""
    raise InputError("this stage learns from posed scenes; give --data posed:FOLDER or --data rooms")


@dataclass(frozen=True)
class Context:
    """What a stage may make its data from.

    images: photographs for training, or those that are kept from it.  seed: of the run.
    device: where an earlier stage's network labels images.  on_device: whether pairs are warped and lit on the
    training device (``dataset.finish``) instead of in the loader.  trained: the network of an earlier stage by the
    stage's name, in evaluation mode on `device`.  cache: folder that outlives runs, for labels.
    items: how many items the stage will draw from its dataset in all; what they do not need, need not be labelled.
    scenes: (height, width) of the views → the posed scenes; those that are rendered are rendered at that size.
    initial: puts the weights that the run starts from into a network of its first stage; whether there are any.
    """

    images: Images
    seed: int
    device: torch.device
    on_device: bool
    cache: Path
    trained: Callable[[str], nn.Module]
    items: int
    scenes: Callable[[int, int], Sequence[PosedScene]] = no_scenes
    initial: Callable[[nn.Module], bool] = lambda network: False


class Run(Protocol):
    def __call__(self, network: nn.Module, *inputs: Tensor) -> Any:
        """Outputs of `network` in 32 bit, computed in the precision that the run is configured for."""
        ...


@dataclass(frozen=True)
class Stage:
    """One training stage; stages run one after another, each from its own fresh optimizer.

    network: a new network with random weights, with all that this stage trains.
    dataset: a map-style Dataset without end whose item n, a NamedTuple of tensors, depends on the context and n alone.
    losses: (run, network, batch) → scalars by name; ``loss`` is minimised, the others are watched.  Call the network,
        and any part of it, through `run`.
    training: settings of the loop that differ from TrainConfig's defaults.
    deployed: network → the module whose outputs the method's ``decoding`` names; of a stage that only detects
        (`describes` False), those without the descriptors.
    start: (network, context) before the first step, for weights that come from an earlier stage.
    """

    name: str
    network: Callable[[], nn.Module]
    dataset: Callable[[Context], Dataset]
    losses: Callable[[Run, nn.Module, Any], dict[str, Tensor]]
    deployed: Callable[[nn.Module], nn.Module]
    training: Mapping[str, Any] = field(default_factory=dict)
    describes: bool = True
    start: Callable[[nn.Module, Context], None] | None = None


class Method(Protocol):
    """One method: built from its own frozen config dataclass, it declares all that training and export need.

    Config: the dataclass, of plain values with the paper's defaults.  variant: short name of this configuration.
    """

    Config: type
    config: Any
    variant: str

    def stages(self) -> tuple[Stage, ...]:
        """Training stages in order; the last one's network is exported."""
        ...

    def decoding(self) -> Decoding:
        """How the runtime decodes the deployed network's outputs."""
        ...


def images_to_float(batch: Any) -> tuple[Tensor, Tensor]:
    """Both views of a PairBatch, B×C×H×W float32 in [0, 1]."""
    return batch.image0.float() / 255, batch.image1.float() / 255


def gumbel_like(values: Tensor) -> Tensor:
    """Gumbel noise of the shape of `values`."""
    return -torch.log(-torch.log(torch.rand_like(values).clamp(1e-6, 1 - 1e-6)))
