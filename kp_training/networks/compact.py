"""Our small network: grey image → full-resolution scores and 64-D descriptors at 1/8, for CPUs and Jetsons.

The shapes follow what is known of small networks (METHODS.md section 9): a few channels where there are many
pixels, a deep and wide coarse level for context, and scores made at 1/2 by 3×3 convolutions and a pixel
shuffle, so that shifting the image shifts the scores. The same weights can be built at other widths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _unit(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU: the three become one convolution at export."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """Two 3×3 units around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _unit(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.second(self.first(features)))


class CompactNet(nn.Module):
    """Grey B×1×H×W in [0, 1] → (score logits B×1×H×W, descriptors B×D×H/8×W/8, reliability logits B×1×H/8×W/8).

    H and W are multiples of 32. Descriptors are not normalised: the decoder samples, then normalises.
    widths: channels at 1/2, 1/4, 1/8, 1/16 and 1/32.
    """

    stride = 8
    size_multiple = 32
    color = "gray"
    decoder = "full"

    def __init__(
        self, descriptor_size: int = 64, widths: tuple[int, int, int, int, int] = (16, 16, 48, 64, 64),
        score_width: int = 16,
    ) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth, coarse = widths
        self.descriptor_size = descriptor_size
        self.level_2 = nn.Sequential(_unit(1, half, 2), _unit(half, half))
        self.level_4 = nn.Sequential(_unit(half, quarter, 2), _Residual(quarter))
        self.level_8 = nn.Sequential(_unit(quarter, eighth, 2), _Residual(eighth))
        self.level_16 = nn.Sequential(_unit(eighth, sixteenth, 2), _Residual(sixteenth))
        self.level_32 = nn.Sequential(_unit(sixteenth, coarse, 2), _Residual(coarse))
        self.from_coarse = _unit(coarse, sixteenth, kernel=1)
        self.from_sixteenth = _unit(sixteenth, descriptor_size, kernel=1)
        self.from_eighth = _unit(eighth, descriptor_size, kernel=1)
        self.from_quarter = nn.Sequential(nn.AvgPool2d(2), _unit(quarter, descriptor_size, kernel=1))
        self.describe = nn.Sequential(
            _unit(descriptor_size, descriptor_size), nn.Conv2d(descriptor_size, descriptor_size, 1)
        )
        self.reliability = nn.Conv2d(descriptor_size, 1, 1)
        self.score_half = _unit(half, score_width, kernel=1)
        self.score_quarter = _unit(quarter, score_width, kernel=1)
        self.score_eighth = _unit(descriptor_size, score_width, kernel=1)
        self.score = nn.Sequential(
            _unit(score_width, score_width), nn.Conv2d(score_width, 4, 3, 1, 1)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = self.level_2(image - 0.5)
        quarter = self.level_4(half)
        eighth = self.level_8(quarter)
        sixteenth = self.level_16(eighth)
        context = sixteenth + _upsample(self.from_coarse(self.level_32(sixteenth)), 2)
        fused = self.from_eighth(eighth) + self.from_quarter(quarter) + _upsample(self.from_sixteenth(context), 2)
        described = self.describe[0](fused)
        fine = self.score_half(half) + _upsample(
            self.score_quarter(quarter) + _upsample(self.score_eighth(fused), 2), 2
        )
        logits = F.pixel_shuffle(self.score(fine), 2)
        return logits, self.describe[1](described), self.reliability(described)

    def scores(self, logits: Tensor, reliability: Tensor) -> Tensor:
        """What the decoder ranks by: detection times reliability squared, B×1×H×W in (0, 1)."""
        return torch.sigmoid(logits) * torch.sigmoid(_upsample(reliability, self.stride)).square()


class DeployedCompact(nn.Module):
    """The two maps that the runtime decodes: scores and descriptors."""

    def __init__(self, network: CompactNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, descriptors, reliability = self.network(image)
        return self.network.scores(logits, reliability), descriptors


def _upsample(features: Tensor, factor: int) -> Tensor:
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
