"""KeypointResnet of KP2D: a ResNet18 with skips to a decoder that finds points at 1/8 and describes them at 1/2."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_training.networks.keypointnet import CellMaps, scale_input, unit, without_border
from kp_training.networks.published import rename_published
from kp_training.networks.resnet import Resnet18


class _Up(nn.Module):
    """To twice the size, joined with the encoder's map of that size."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.before, self.after = unit(inputs, outputs), unit(outputs + skip, outputs)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        larger = F.interpolate(self.before(features), scale_factor=2, mode="nearest")
        return self.after(torch.cat([larger, skip], 1))


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(unit(inputs, inputs), nn.Conv2d(inputs, outputs, 3, 1, 1, padding_mode="reflect"))


class KeypointResnet(nn.Module):
    """RGB B×3×H×W in [0, 1] → CellMaps with descriptors at H/2; H and W are multiples of 32.  16,938,243 parameters.

    dropout: of whole channels after each of the encoder's layers.
    """

    descriptor_size = 64
    stride = 2
    size_multiple = 32
    color = "rgb"

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = Resnet18(dropout)
        self.up4, self.up3 = _Up(512, 256, 256), _Up(256, 128, 256)
        self.up2, self.up1 = _Up(256, 64, 128), _Up(128, 64, 64)
        self.score, self.location, self.describe = _head(256, 1), _head(256, 2), _head(64, 64)

    def forward(self, image: Tensor) -> CellMaps:
        half, quarter, eighth, sixteenth, coarse = self.encoder(scale_input(image))
        cells = self.up3(self.up4(coarse, sixteenth), eighth)
        fine = self.up1(self.up2(cells, quarter), half)
        return CellMaps(
            torch.sigmoid(self.score(cells)) * without_border(cells[:, :1]),
            torch.tanh(self.location(cells)),
            self.describe(fine),
        )

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from a file of KP2D's authors, or with the encoder from torchvision's ResNet18 (ImageNet).

        Raises InputError where the file is of neither layout.
        """
        if "conv1.weight" in state:
            encoder = self.encoder.state_dict()
            names = {part: part for part, _ in self.encoder.named_children()}
            renamed = rename_published(state, encoder, names, "torchvision's ResNet18", ("fc.",))
            return self.state_dict() | {f"encoder.{name}": value for name, value in renamed.items()}
        names = {"encoder": "encoderK.rn"}
        for level in range(1, 5):
            names |= {f"up{level}.before": f"decoderK.upconv{level}_0.conv",
                      f"up{level}.after": f"decoderK.upconv{level}_1.conv"}
        for ours, theirs in (("score", "scoreconv"), ("location", "locconv"), ("describe", "featconv")):
            names |= {f"{ours}.0": f"decoderK.{theirs}", f"{ours}.1": f"decoderK.{theirs}.4"}
        return rename_published(state, self.state_dict(), names, "KP2D's KeypointResnet", ("encoderK.rn.fc.",))
