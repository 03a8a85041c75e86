"""SuperPoint, and MagicPoint, its detector alone ("SuperPoint: self-supervised interest point detection …", 2018).

Three orders of the same layers are about (METHODS.md section 2): with batch norm before each ReLU (``prp``), after it
(``open``), and without any, as the authors published it (``none``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from kp_frontend.errors import InputError, unknown_name

CELL = 8
WIDTHS = (64, 64, 64, 64, 128, 128, 128, 128)
NORMS = {
    "prp": lambda channels: (nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU()),
    "open": lambda channels: (nn.ReLU(), nn.BatchNorm2d(channels, eps=1e-3)),
    "none": lambda channels: (nn.ReLU(),),
}
PUBLISHED = {
    **{f"conv{stage}{half}": f"encoder.{2 * stage - 2 + (half == 'b')}.0" for stage in range(1, 5) for half in "ab"},
    "convPa": "detector.0.0", "convPb": "detector.1.0", "convDa": "descriptor.0.0", "convDb": "descriptor.1.0",
}
"""Layers of MagicLeap's superpoint_v1.pth → ours."""


class MagicPointMaps(NamedTuple):
    """logits: B×65×h×w, of a cell's 64 pixels, row by row, and of there being no point in it (the dustbin)."""

    logits: Tensor


class SuperPointMaps(NamedTuple):
    """logits: as in MagicPointMaps.  descriptors: B×D×h×w, of any length."""

    logits: Tensor
    descriptors: Tensor


def _unit(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), *NORMS[norm](outputs))


def _head(outputs: int, norm: str) -> nn.Sequential:
    norms = [layer for layer in NORMS[norm](outputs) if not isinstance(layer, nn.ReLU)]
    return nn.Sequential(_unit(WIDTHS[-1], 256, norm), nn.Sequential(nn.Conv2d(256, outputs, 1), *norms))


class MagicPointNet(nn.Module):
    """Grey B×1×H×W in [0, 1] → MagicPointMaps; H and W are multiples of 8.  942,083 parameters, 939,905 without norm.

    norm: a name in NORMS.  Raises InputError for another.
    """

    stride = CELL
    size_multiple = CELL
    color = "gray"
    descriptor_size = 0

    def __init__(self, norm: str = "prp") -> None:
        super().__init__()
        if norm not in NORMS:
            raise unknown_name("norm", norm, NORMS)
        self.encoder = nn.ModuleList(_unit(*widths, norm) for widths in zip((1, *WIDTHS), WIDTHS))
        self.detector = _head(CELL * CELL + 1, norm)

    def encode(self, image: Tensor) -> Tensor:
        """B×128×H/8×W/8 features."""
        features = image
        for number, unit in enumerate(self.encoder):
            features = unit(F.max_pool2d(features, 2) if number in (2, 4, 6) else features)
        return features

    def forward(self, image: Tensor) -> NamedTuple:
        return MagicPointMaps(self.detector(self.encode(image)))

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` of MagicLeap's file under our names, less what this network has not.

        Raises InputError where it is not that layout, or where this network has layers that it lacks.
        """
        unknown = sorted({name.rpartition(".")[0] for name in state} ^ set(PUBLISHED))
        if unknown:
            raise InputError(f"these are not the layers of MagicLeap's SuperPoint (amiss: {', '.join(unknown[:4])})")
        own = self.state_dict()
        renamed = {f"{PUBLISHED[layer]}.{kind}": values for name, values in state.items()
                   for layer, _, kind in [name.rpartition(".")]}
        if lacking := sorted(own.keys() - renamed.keys()):
            raise InputError(f"MagicLeap's SuperPoint has no batch norm (no {lacking[0]}); use norm=none")
        return {name: values for name, values in renamed.items() if name in own}


class SuperPointNet(MagicPointNet):
    """Grey B×1×H×W in [0, 1] → SuperPointMaps; H and W are multiples of 8.

    1,304,067 parameters, 1,300,865 without norm.  Descriptors are sampled and normalised by the decoder.
    """

    descriptor_size = 256

    def __init__(self, norm: str = "prp") -> None:
        super().__init__(norm)
        self.descriptor = _head(self.descriptor_size, norm)

    def forward(self, image: Tensor) -> NamedTuple:
        features = self.encode(image)
        return SuperPointMaps(self.detector(features), self.descriptor(features))


def scores_of_cells(logits: Tensor) -> Tensor:
    """B×1×H×W probabilities of `logits` (B×65×H/8×W/8): the softmax of each cell without its dustbin."""
    return F.pixel_shuffle(logits.softmax(1)[:, :-1], CELL)


class Deployed(nn.Module):
    """B×C×H×W image → B×1×H×W probabilities, and with 2 `outputs` also B×D×h×w descriptors.

    scores: the first of the network's outputs → B×1×H×W probabilities.
    """

    def __init__(self, network: nn.Module, scores: Callable[[Tensor], Tensor], outputs: int) -> None:
        super().__init__()
        self.network, self.scores, self.outputs = network, scores, outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits, *others = self.network(image)
        return (self.scores(logits), *others[: self.outputs - 1])
