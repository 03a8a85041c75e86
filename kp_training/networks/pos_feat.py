"""PoSFeat's networks: descriptors on a ResNet-50, and a detector that reads them ("Decoupling makes …", CVPR 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kp_training.geometry.sampling import sample
from kp_training.networks.compact import CompactNet
from kp_training.networks.resnet import Resnet50, scale_to_imagenet

SIZE = 128
"""Numbers of a descriptor, at one of its two levels."""


class DescriptionMaps(NamedTuple):
    """fine: B×128×H/4×W/4.  coarse: B×128×H/16×W/16, None without that head.  stem: B×64×H/4×W/4, of the backbone."""

    fine: Tensor
    coarse: Tensor | None
    stem: Tensor


class PosFeatMaps(NamedTuple):
    """scores: B×1×H×W ≥ 0, None without a detector.  descriptors: B×D×H/4×W/4, of any length, made of `levels`."""

    scores: Tensor | None
    descriptors: Tensor
    levels: DescriptionMaps


def _unit(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2), nn.BatchNorm2d(outputs), nn.ELU())


class _Up(nn.Module):
    """To twice the size, joined with the backbone's map of that size."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.before, self.after = _unit(inputs, outputs), _unit(outputs + skip, outputs)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        larger = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)  # as in the code
        return self.after(torch.cat([self.before(larger), skip], 1))


class DescriptionNet(nn.Module):
    """RGB B×3×H×W in [0, 1] → DescriptionMaps; H and W are multiples of 16.

    20,377,536 parameters, and 131,456 more of the head that coarse-to-fine search needs.
    """

    def __init__(self, coarse: bool = False) -> None:
        super().__init__()
        self.backbone = Resnet50()
        self.up2, self.up1 = _Up(1024, 512, 512), _Up(512, 256, 256)
        self.fine = _unit(256, SIZE, 1)
        self.coarse = _unit(1024, SIZE, 1) if coarse else None

    def forward(self, image: Tensor) -> DescriptionMaps:
        stem, quarter, eighth, sixteenth = self.backbone(image)
        fine = self.fine(self.up1(self.up2(sixteenth, eighth), quarter))
        return DescriptionMaps(fine, None if self.coarse is None else self.coarse(sixteenth), stem)


class DetectionNet(nn.Module):
    """RGB B×3×H×W in [0, 1] and DescriptionMaps → scores, B×1×H×W ≥ 0.  628,930 parameters.

    Norms are of an image and without weights; both activations are one.  No gradient goes back into the descriptors,
    as in the code, in joint training either.  Which of the stem's maps the paper means is unstated: here the pooled
    one, which is as large as the descriptors'.
    In training, what is of the image's size is made again for the gradient, view by view: six pairs of 480×640 would
    else want 20 GB.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(SIZE + 64, SIZE + 64, 3, 1, 1)
        self.image = nn.Conv2d(3, 64, 3, 1, 1)
        self.join = nn.Conv2d(SIZE + 128, 128, 3, 1, 1)
        self.score = nn.Conv2d(128, 1, 1)
        self.activation = nn.PReLU()

    def forward(self, image: Tensor, maps: DescriptionMaps) -> Tensor:
        mixed = self.activation(F.instance_norm(self.mix(torch.cat([maps.fine.detach(), maps.stem], 1))))
        if not (self.training and torch.is_grad_enabled()):
            return self._finish(image, mixed)
        views = zip(image.split(1), mixed.split(1))
        return torch.cat([checkpoint(self._finish, *view, use_reentrant=False) for view in views])

    def _finish(self, image: Tensor, mixed: Tensor) -> Tensor:
        mixed = F.interpolate(mixed, scale_factor=4, mode="bilinear", align_corners=False)
        seen = F.instance_norm(self.image(scale_to_imagenet(image)))
        joined = self.activation(F.instance_norm(self.join(torch.cat([mixed, seen], 1))))
        return F.softplus(F.instance_norm(self.score(joined)))


class PosFeatNet(nn.Module):
    """RGB B×3×H×W in [0, 1] → PosFeatMaps; H and W are multiples of 16.

    coarse: descriptors are those of both levels, each of unit length, one after the other: 256 numbers.
    detects: whether it has a detector.
    frozen: the description stays as it is, its norms too, and is what the detector cannot change.
    """

    stride = 4
    size_multiple = 16
    color = "rgb"

    def __init__(self, coarse: bool = False, detects: bool = True, frozen: bool = False) -> None:
        super().__init__()
        self.descriptor_size = 2 * SIZE if coarse else SIZE
        self.description = DescriptionNet(coarse)
        self.detection = DetectionNet() if detects else None
        self.frozen = frozen
        self.description.requires_grad_(not frozen)
        self.train()  # the loop trains a network in the mode that it was built in

    def train(self, mode: bool = True) -> PosFeatNet:
        super().train(mode)
        if self.frozen:
            self.description.eval()
        return self

    def describe(self, maps: DescriptionMaps) -> Tensor:
        """B×D×H/4×W/4 descriptors."""
        if maps.coarse is None:
            return maps.fine
        coarse = F.interpolate(maps.coarse, scale_factor=4, mode="bilinear", align_corners=False)
        return torch.cat([F.normalize(maps.fine, dim=1), F.normalize(coarse, dim=1)], 1)

    def forward(self, image: Tensor) -> PosFeatMaps:
        maps = self.description(image)
        scores = None if self.detection is None else self.detection(image, maps)
        return PosFeatMaps(scores, self.describe(maps), maps)


class DetectingCompact(CompactNet):
    """A CompactNet of which the detector alone learns; what it detects in, and what describes, stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        for part in detecting_parts(self):
            part.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> DetectingCompact:
        super().train(False)
        self.training = mode
        for part in detecting_parts(self):
            part.train(mode)
        return self


def detecting_parts(network: CompactNet) -> tuple[nn.Module, ...]:
    """The layers of a CompactNet that its scores and nothing else need."""
    return (network.score_half, network.score_quarter, network.score_eighth, network.score, network.reliability)


class AtCorners(nn.Module):
    """B×3×H×W image → Shi-Tomasi corner strengths B×1×H×W, above any threshold, and descriptors.

    So a network that does not detect yet can be looked at.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        smooth, step = torch.tensor([1.0, 2, 1]) / 4, torch.tensor([-1.0, 0, 1]) / 2
        self.register_buffer("gradients", torch.stack([torch.outer(smooth, step), torch.outer(step, smooth)])[:, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        gray = F.pad(image.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        x, y = F.conv2d(gray, self.gradients).chunk(2, 1)
        xx, yy, xy = F.avg_pool2d(torch.cat([x * x, y * y, x * y], 1), 3, 1, 1).chunk(3, 1)
        least = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square() + 1e-12).sqrt()
        return 1 + least.clamp_min(0), self.network(image).descriptors


class DeployedPosFeat(nn.Module):
    """B×3×H×W image → B×1×H×W scores and B×D×H/4×W/4 descriptors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network(image)
        return maps.scores, maps.descriptors


class AtPoints(nn.Module):
    """B×C×H×W image and B×N×2 points in pixels → B×N×D descriptors of unit length."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, keypoints: Tensor) -> Tensor:
        descriptors = self.network(image)[1]  # the second output of either network
        return F.normalize(sample(descriptors.float(), keypoints, self.network.stride), dim=-1)
