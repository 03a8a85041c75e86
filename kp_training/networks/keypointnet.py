"""KeyPointNet of KP2D, layer for layer as its code has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_training.networks.published import rename_published


class CellMaps(NamedTuple):
    """What a network says of each cell of 8×8 pixels.

    scores: B×1×h×w in [0, 1].  offsets: B×2×h×w (x, y) in (−1, 1), in half cells of 3.5 pixels times the cross
    ratio.  descriptors: B×D×h'×w', any length, h' = 2h for KeyPointNet with upsampling.
    """

    scores: Tensor
    offsets: Tensor
    descriptors: Tensor


def unit(inputs: int, outputs: int) -> nn.Sequential:
    """3×3 convolution, batch norm, LeakyReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.01))


def _stage(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(unit(inputs, outputs), unit(outputs, outputs), nn.Dropout2d(dropout))


class KeyPointNet(nn.Module):
    """RGB B×3×H×W in [0, 1] → CellMaps; H and W are multiples of 8.  5,312,227 parameters.

    dropout: of whole channels after each stage and in the heads (0.2 in the code, absent from the paper).
    upsample: descriptors at H/4 through a pixel shuffle; without (V0, V1) at H/8, and 4,131,555 parameters.
    """

    descriptor_size = 256
    size_multiple = 8
    color = "rgb"

    def __init__(self, dropout: float = 0.2, upsample: bool = True) -> None:
        super().__init__()
        self.upsample, self.stride = upsample, 4 if upsample else 8
        self.stage1 = _stage(3, 32, dropout)
        self.stage2 = _stage(32, 64, dropout)
        self.stage3 = _stage(64, 128, dropout)
        self.stage4 = _stage(128, 256, dropout)
        self.score = nn.Sequential(unit(256, 256), nn.Dropout2d(dropout), nn.Conv2d(256, 1, 3, 1, 1))
        self.location = nn.Sequential(unit(256, 256), nn.Dropout2d(dropout), nn.Conv2d(256, 2, 3, 1, 1))
        widened = (nn.Conv2d(256, 512, 3, 1, 1, bias=False), nn.BatchNorm2d(512)) if upsample else ()
        self.widen = nn.Sequential(unit(256, 256), nn.Dropout2d(dropout), *widened)
        self.describe = nn.Sequential(unit(256, 256), nn.Conv2d(256, 256, 3, 1, 1))

    def forward(self, image: Tensor) -> CellMaps:
        features = self.stage1(scale_input(image))
        features = self.stage2(F.max_pool2d(features, 2))
        skip = self.stage3(F.max_pool2d(features, 2))
        features = self.stage4(F.max_pool2d(skip, 2))
        described = self.widen(features)
        if self.upsample:
            described = torch.cat([F.pixel_shuffle(described, 2), skip], 1)
        return CellMaps(
            torch.sigmoid(self.score(features)) * without_border(features[:, :1]),
            torch.tanh(self.location(features)),
            self.describe(described),
        )

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from that of a file of KP2D's authors; V0's and V1's hold an unused layer (``convFb``).

        Raises InputError where the file is of another layout.
        """
        names = {f"stage{n}.{i}": f"conv{n}{letter}" for n in range(1, 5) for i, letter in enumerate("ab")}
        names |= {"score.0": "convDa", "score.2": "convDb", "location.0": "convPa", "location.2": "convPb",
                  "widen.0": "convFa", "widen.2": "convFb.0", "widen.3": "convFb.1", "describe.0": "convFaa",
                  "describe.1": "convFbb"}
        unused = () if self.upsample else ("convFb.",)
        return rename_published(state, self.state_dict(), names, "KP2D's KeypointNet", unused)


def scale_input(image: Tensor) -> Tensor:
    """What KP2D's networks see of an image in [0, 1]."""
    # The code multiplies by .225 where it meant to divide; kept, so that its weights stay usable.
    return (image - 0.5) * 0.225


def without_border(maps: Tensor) -> Tensor:
    """Ones like `maps`, with zeros in the outermost ring; exports with dynamic sizes."""
    return F.pad(torch.ones_like(maps[..., 1:-1, 1:-1]), (1, 1, 1, 1))
