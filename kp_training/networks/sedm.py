"""SEDM's networks: SuperPoint's detector, and a second network beside it that describes what the first one finds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kp_training.networks.superpoint import CELL, MagicPointNet, SuperPointMaps, SuperPointNet


class SedmDetector(MagicPointNet):
    """MagicPointNet with batch norm whose first layer sees the image mirrored at its border, not zeros.

    942,083 parameters.  Zeros make an edge of the border, and an untrained network fires there.
    """

    def __init__(self) -> None:
        super().__init__("prp")
        self.encoder[0][0] = nn.Conv2d(1, self.encoder[0][0].out_channels, 3, 1, 1, padding_mode="reflect")


class Describer(SuperPointNet):
    """SuperPoint without its detector: grey B×1×H×W in [0, 1] → B×256×H/8×W/8, of any length."""

    def __init__(self, norm: str = "prp") -> None:
        super().__init__(norm)
        del self.detector

    def forward(self, image: Tensor) -> Tensor:
        return self.descriptor(self.encode(image))


class SedmNet(nn.Module):
    """Both: grey B×1×H×W in [0, 1] → SuperPointMaps; H and W are multiples of 8."""

    stride = CELL
    size_multiple = CELL
    color = "gray"
    descriptor_size = Describer.descriptor_size

    def __init__(self, norm: str = "prp") -> None:
        super().__init__()
        self.detector, self.describer = SedmDetector(), Describer(norm)

    def forward(self, image: Tensor) -> SuperPointMaps:
        return SuperPointMaps(self.detector(image).logits, self.describer(image))


def settle(network: nn.Module, images: Tensor) -> None:
    """Give the batch norms of an untrained network the statistics of B×1×H×W images.

    Without them, a random network says nearly the same of every image: that of its biases [ours].  On a CPU by one
    thread, since several add in another order: a run that goes on with more would not find its labels again.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all that is seen from here on
        norm.reset_running_stats()
    network.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for batch in images.split(4):
                network(batch)
    finally:
        torch.set_num_threads(threads)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    network.eval()


def keep_frozen(network: nn.Module) -> None:
    """Layers that are not trained keep the statistics of their norms too."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
