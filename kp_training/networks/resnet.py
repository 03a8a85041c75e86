"""Residual networks whose tensors have torchvision's names, so that its public weights of ImageNet fit.

"Deep residual learning for image recognition", He et al., CVPR 2016; strides as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_training.networks.published import rename_published


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        features = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(features)) + shortcut)


class Bottleneck(nn.Module):
    """A 3×3 convolution in a quarter of the channels, between two of 1×1, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        features = F.relu(self.bn1(self.conv1(features)))
        features = F.relu(self.bn2(self.conv2(features)))
        return F.relu(self.bn3(self.conv3(features)) + shortcut)


class Resnet18(nn.Module):
    """B×3×H×W → maps of 64, 64, 128, 256, 512 channels at 1/2 to 1/32.

    dropout: of whole channels after each layer.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for level in range(1, 5):
            inputs, outputs = widths[level - 1 : level + 1]
            blocks = BasicBlock(inputs, outputs, 1 if level == 1 else 2), BasicBlock(outputs, outputs, 1)
            self.add_module(f"layer{level}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [F.relu(self.bn1(self.conv1(image)))]
        features = F.max_pool2d(maps[0], 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = self.dropout(layer(features))
            maps.append(features)
        return maps


class Resnet50(nn.Module):
    """ResNet-50 to its third layer: RGB B×3×H×W in [0, 1] → maps of 64, 256, 512, 1024 channels at 1/4, 1/4, 1/8, 1/16.

    The first is the pooled stem.  8,543,296 parameters.  ImageNet's normalisation is inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for level, (outputs, count) in enumerate(((256, 3), (512, 4), (1024, 6)), 1):
            first = Bottleneck(inputs, outputs, 1 if level == 1 else 2)
            self.add_module(f"layer{level}", nn.Sequential(first, *(Bottleneck(outputs, outputs, 1)
                                                                    for _ in range(count - 1))))
            inputs = outputs

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [F.max_pool2d(F.relu(self.bn1(self.conv1(scale_to_imagenet(image)))), 3, 2, 1)]
        for layer in (self.layer1, self.layer2, self.layer3):
            maps.append(layer(maps[-1]))
        return maps

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from torchvision's file of a ResNet-50, whose last layers we have no use for.

        Raises InputError where the file is of another layout.
        """
        names = {part: part for part, _ in self.named_children()}
        return rename_published(state, self.state_dict(), names, "torchvision's ResNet-50", ("fc.", "layer4."))


def scale_to_imagenet(image: Tensor) -> Tensor:
    """RGB B×3×H×W in [0, 1], with ImageNet's mean taken off and divided by its deviation."""
    mean, deviation = (torch.tensor(values, device=image.device, dtype=image.dtype)[:, None, None]
                       for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (image - mean) / deviation
