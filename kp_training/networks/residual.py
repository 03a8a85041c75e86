"""The network of "Residual learning for image point descriptors": what a classical descriptor lacks, from the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_training.geometry.sampling import sample

HALF = 128
HIDDEN = 256


def _encoder(channels: int, convolutions: int) -> nn.Sequential:
    """SuperPoint's encoder to 1/8 without batch norm: four blocks of 3×3 convolutions, 2×2 pooling between them."""
    layers: list[nn.Module] = []
    inputs = 3
    for block, outputs in enumerate((channels, channels, 2 * channels, 2 * channels)):
        if block:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU(inplace=True)]
            inputs = outputs
    return nn.Sequential(*layers)


class ResidualNet(nn.Module):
    """RGB B×3×H×W in [0, 1], B×N×2 keypoints (pixels), B×N×d classical descriptors → B×N×256 of unit length.

    classical_size: d.  channels: of the first block; 64 is the paper's.  fusion: without it, the descriptor is the
    image half's alone, with all 256 numbers.  small: one convolution a block instead of two.
    normalise_cnn: the image half has unit length before fusion.  relu_last: ReLU after both last layers too, as the
    paper's text can be read; a descriptor without negative numbers tells less apart, so by default they are linear.
    H and W are multiples of 8.  957,248 parameters of the image half and 131,712 of the refinement by default.
    """

    stride = 8
    size_multiple = 8
    color = "rgb"
    descriptor_size = 2 * HALF

    def __init__(
        self, classical_size: int = 128, channels: int = 64, fusion: bool = True, small: bool = False,
        normalise_cnn: bool = False, relu_last: bool = False,
    ) -> None:
        super().__init__()
        self.normalise_cnn = normalise_cnn
        last = [nn.ReLU()] if relu_last else []
        self.encoder = _encoder(channels, 1 if small else 2)
        self.describe = nn.Sequential(
            nn.Conv2d(2 * channels, 4 * channels, 3, 1, 1), nn.ReLU(inplace=True),
            nn.Conv2d(4 * channels, HALF if fusion else 2 * HALF, 1), *last,
        )
        self.refine = nn.Sequential(
            nn.Linear(classical_size, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, HALF), *last,
        ) if fusion else None

    def forward(self, image: Tensor, keypoints: Tensor, descriptors: Tensor | None = None) -> Tensor:
        """`descriptors` may be left out without fusion."""
        seen = sample(self.describe(self.encoder(image)).float(), keypoints, self.stride)
        if self.normalise_cnn:
            seen = F.normalize(seen, dim=-1)
        parts = [seen] if self.refine is None else [self.refine(descriptors).float(), seen]
        return F.normalize(torch.cat(parts, -1), dim=-1)
