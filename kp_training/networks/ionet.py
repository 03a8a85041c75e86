"""IO-Net of KP2D: tells from where two keypoints lie, and how alike they are, whether they are the same point."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from kp_frontend.errors import InputError


class _Block(nn.Module):
    """Twice: mix the channels of each match, normalise over an image's matches, then over the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(2))
        self.norm = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(2))

    def forward(self, matches: Tensor) -> Tensor:
        features = matches
        for mix, norm in zip(self.mix, self.norm):
            features = F.relu(norm(F.instance_norm(mix(features))))
        return matches + features


class IoNet(nn.Module):
    """Matches B×5×N (x, y, x′, y′ in [−1, 1], descriptor distance) → B×N, towards 1 for inliers, −1 for outliers.

    135,169 parameters.  blocks: 4; NG-RANSAC (ICCV 2019), which it comes from, has 12.
    """

    def __init__(self, blocks: int = 4, channels: int = 128) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv1d(5, channels, 1, bias=False), nn.BatchNorm1d(channels, momentum=0.9),
                                   nn.ReLU())
        self.blocks = nn.Sequential(*(_Block(channels) for _ in range(blocks)))
        self.leave = nn.Conv1d(channels, 1, 1)

    def forward(self, matches: Tensor) -> Tensor:
        return self.leave(self.blocks(self.enter(matches)))[:, 0]


class WithOutliers(nn.Module):
    """A network of keypoints and the IO-Net that is trained with it; to others it is the former."""

    def __init__(self, keypoints: nn.Module) -> None:
        super().__init__()
        self.keypoints, self.outliers = keypoints, IoNet()
        for name in ("descriptor_size", "stride", "size_multiple", "color"):
            setattr(self, name, getattr(keypoints, name))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.keypoints(image)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the keypoints' network reads it; no public file holds an IO-Net, so that stays as it is.

        Raises InputError where the file is of another layout, or there is no public file for that network.
        """
        if not hasattr(self.keypoints, "from_published"):
            raise InputError(f"{type(self.keypoints).__name__} has no published weights; give a checkpoint of ours")
        keypoints = self.keypoints.from_published(state)
        return self.state_dict() | {f"keypoints.{name}": value for name, value in keypoints.items()}
