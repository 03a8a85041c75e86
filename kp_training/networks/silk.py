"""SiLK's network: a plain stack of 3×3 convolutions at full resolution with a head for scores and one to describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LENGTH = 2**0.5
"""Of descriptors; the paper's 1.41."""
MARGIN = 9
"""Pixels that nine 3×3 convolutions without padding take off each side."""


class SilkNet(nn.Module):
    """Grey B×1×H×W in [0, 1] → (score logits B×1×h×w, descriptors B×D×h×w of length √2); 942,147 parameters.

    width: channels of the first half; the second half and the descriptors have twice as many.  64 is the paper's.
    padding: zeros around every convolution, so that h = H (ours, for deployment).  Without, as the paper trains,
    h = H − 18 and cell i of the maps is pixel i + `margin`.
    recompute: layers are run again for the gradient, two at a time, instead of keeping what they gave.
    """

    stride = 1
    color = "gray"

    def __init__(self, width: int = 64, padding: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.descriptor_size, self.recompute = 2 * width, recompute
        self.margin = 0 if padding else MARGIN
        # Without padding, the smallest input must be larger than the two margins.
        self.size_multiple = 8 if padding else 32
        channels = [1, *[width] * 4, *[2 * width] * 4]
        layers = [_unit(inputs, outputs, padding) for inputs, outputs in pairwise(channels)]
        self.backbone = nn.ModuleList(nn.Sequential(*layers[first : first + 2]) for first in range(0, 8, 2))
        self.detect = _head(2 * width, 1, padding)
        self.describe = _head(2 * width, self.descriptor_size, padding)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        for layers in self.backbone:
            image = self._run(layers, image)
        return self._run(self.detect, image), F.normalize(self._run(self.describe, image)) * LENGTH

    def _run(self, layers: nn.Module, features: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return layers(features)
        return checkpoint(layers, features, use_reentrant=False, preserve_rng_state=False,
                          context_fn=lambda: (nullcontext(), _statistics_kept(layers)))


def _unit(inputs: int, outputs: int, padding: bool) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=int(padding)), nn.ReLU(inplace=True),
                         nn.BatchNorm2d(outputs))


def _head(inputs: int, outputs: int, padding: bool) -> nn.Sequential:
    return nn.Sequential(_unit(inputs, inputs, padding), nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


@contextmanager
def _statistics_kept(layers: nn.Module) -> Iterator[None]:
    """While layers run a second time on the same batch, batch norms must not count it again."""
    norms = [layer for layer in layers.modules() if isinstance(layer, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(batches)


class DeployedSilk(nn.Module):
    """The maps that the runtime decodes, of the image's size: scores in [0, 1] (0 in the margin) and descriptors."""

    def __init__(self, network: SilkNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, descriptors = self.network(image)
        margin = [self.network.margin] * 4
        return F.pad(torch.sigmoid(logits), margin), F.pad(descriptors, margin, mode="replicate")
