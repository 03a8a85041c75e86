"""KeyPointNet of KP2D (V2: cross-border location, upsampled descriptors), layer for layer as its code has it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CellMaps(NamedTuple):
    """What a network says of each cell of 8×8 pixels.

    scores: B×1×h×w in [0, 1].  offsets: B×2×h×w (x, y) in (−1, 1), in half cells of 3.5 pixels times the cross
    ratio.  descriptors: B×D×h'×w', any length, h' = 2h for KeyPointNet.
    """

    scores: Tensor
    offsets: Tensor
    descriptors: Tensor


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.01))


def _stage(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(_unit(inputs, outputs), _unit(outputs, outputs), nn.Dropout2d(dropout))


class KeyPointNet(nn.Module):
    """RGB B×3×H×W in [0, 1] → CellMaps; H and W are multiples of 8.  5,312,227 parameters.

    dropout: of whole channels after each stage and in the heads (in the code, absent from the paper).
    """

    cell = 8
    cross_ratio = 2.0
    descriptor_size = 256
    stride = 4
    size_multiple = 8
    color = "rgb"

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.stage1 = _stage(3, 32, dropout)
        self.stage2 = _stage(32, 64, dropout)
        self.stage3 = _stage(64, 128, dropout)
        self.stage4 = _stage(128, 256, dropout)
        self.score = nn.Sequential(_unit(256, 256), nn.Dropout2d(dropout), nn.Conv2d(256, 1, 3, 1, 1))
        self.location = nn.Sequential(_unit(256, 256), nn.Dropout2d(dropout), nn.Conv2d(256, 2, 3, 1, 1))
        self.widen = nn.Sequential(
            _unit(256, 256), nn.Dropout2d(dropout), nn.Conv2d(256, 512, 3, 1, 1, bias=False), nn.BatchNorm2d(512)
        )
        self.describe = nn.Sequential(_unit(256, 256), nn.Conv2d(256, 256, 3, 1, 1))

    def forward(self, image: Tensor) -> CellMaps:
        # The code multiplies by .225 where it meant to divide; kept, so that its weights stay usable.
        features = self.stage1((image - 0.5) * 0.225)
        features = self.stage2(F.max_pool2d(features, 2))
        skip = self.stage3(F.max_pool2d(features, 2))
        features = self.stage4(F.max_pool2d(skip, 2))
        upsampled = F.pixel_shuffle(self.widen(features), 2)
        return CellMaps(
            torch.sigmoid(self.score(features)) * without_border(features[:, :1]),
            torch.tanh(self.location(features)),
            self.describe(torch.cat([upsampled, skip], 1)),
        )


def without_border(maps: Tensor) -> Tensor:
    """Ones like `maps`, with zeros in the outermost ring; exports with dynamic sizes."""
    return F.pad(torch.ones_like(maps[..., 1:-1, 1:-1]), (1, 1, 1, 1))
