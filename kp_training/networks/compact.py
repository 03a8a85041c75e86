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

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the scores B×S×H/2×W/2 and of the descriptors B×D×H/8×W/8, each before its last layers."""
        half = self.level_2(image - 0.5)
        quarter = self.level_4(half)
        eighth = self.level_8(quarter)
        sixteenth = self.level_16(eighth)
        context = sixteenth + _upsample(self.from_coarse(self.level_32(sixteenth)), 2)
        fused = self.from_eighth(eighth) + self.from_quarter(quarter) + _upsample(self.from_sixteenth(context), 2)
        fine = self.score_half(half) + _upsample(
            self.score_quarter(quarter) + _upsample(self.score_eighth(fused), 2), 2
        )
        return self.score[0](fine), self.describe[0](fused)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, described = self.trunk(image)
        return F.pixel_shuffle(self.score[1](fine), 2), self.describe[1](described), self.reliability(described)


class DeployedCompact(nn.Module):
    """The two maps that the runtime decodes: scores B×1×H×W in (0, 1), detection times reliability², and descriptors.

    The scores of a cell of 4×4 pixels are 16 channels until one last pixel shuffle: the same numbers as from logits
    and upsampled reliability at full resolution, but the steps there are spared (on 2 cores 4 of 9 ms, int8).
    Holds the weights that `network` has now.
    """

    kernel: Tensor
    bias: Tensor
    spread: Tensor

    def __init__(self, network: CompactNet) -> None:
        super().__init__()
        self.network = network
        last = network.score[1].state_dict()
        self.register_buffer("kernel", _in_cells(last["weight"]))
        self.register_buffer("bias", last["bias"].view(2, 2).tile(2, 2).flatten())
        self.register_buffer("spread", _bilinear(4).to(last["weight"]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        fine, described = self.network.trunk(image)
        logits = F.conv2d(fine, self.kernel, self.bias, stride=2, padding=1)
        nearest = F.interpolate(self.network.reliability(described), scale_factor=2, mode="nearest")
        reliability = F.conv2d(_with_edges(nearest), self.spread)
        scores = F.pixel_shuffle(torch.sigmoid(logits) * torch.sigmoid(reliability).square(), 4)
        return scores, self.network.describe[1](described)


def _in_cells(kernel: Tensor) -> Tensor:
    """The kernel that gives 2×2 neighbours of `kernel` at once, as the channels of one pixel shuffle of 4.

    kernel: 4×I×k×k, whose channels a pixel shuffle of 2 spreads.  Returns 16×I×(k+1)×(k+1), to be used with stride 2.
    """
    size = kernel.shape[-1]
    cells = kernel.new_zeros(2, 2, 2, 2, kernel.shape[1], size + 1, size + 1)
    for row in range(2):
        for column in range(2):
            cells[row, :, column, :, :, row : row + size, column : column + size] = kernel.unflatten(0, (2, 2))
    return cells.flatten(0, 3)


def _bilinear(factor: int) -> Tensor:
    """factor²×1×3×3: after an upsampling to the nearest by 2 and before a pixel shuffle of `factor`, it makes of both
    the bilinear upsampling (align_corners=False) by 2·factor.

    Along an axis pixel k of `factor` takes (2·factor - 1 - 2k, 2·factor, 1 + 2k) / (4·factor) of the one before, of
    its own and of the next: whichever half of a cell it lies in, one neighbour is the cell itself.
    """
    steps = 2 * torch.arange(factor)
    taps = torch.stack([2 * factor - 1 - steps, torch.full_like(steps, 2 * factor), 1 + steps], dim=1) / (4 * factor)
    return torch.einsum("yi,xj->yxij", taps, taps).flatten(0, 1)[:, None]


def _with_edges(features: Tensor) -> Tensor:
    """A pixel more on each side, as the edge's: F.pad's "replicate", whose ONNX is a dozen operators."""
    features = torch.cat([features[:, :, :1], features, features[:, :, -1:]], dim=2)
    return torch.cat([features[..., :1], features, features[..., -1:]], dim=3)


def _upsample(features: Tensor, factor: int) -> Tensor:
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
