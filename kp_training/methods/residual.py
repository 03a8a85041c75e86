"""Residual: a classical detector's points and descriptors, refined and joined with what a CNN sees around them.

"Residual learning for image point descriptors" (METHODS.md section 6): SIFT or SURF detects and describes; a
SuperPoint encoder reads the image at the points, a small perceptron refines the classical descriptor, and the two
halves become one descriptor of 256 numbers.  Both learn from pairs of views of one photograph by a triplet loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.decoding import PointsParameters
from kp_frontend.errors import InputError
from kp_frontend.extractors.residual import find_detector, point_inputs
from kp_training.data.described import DescribedBatch, DescribedPairs
from kp_training.data.pairs import HomographyPairs, PairConfig
from kp_training.losses.residual import triplet_loss
from kp_training.methods.base import Context, Decoding, Run, Stage, images_to_float
from kp_training.networks.residual import ResidualNet
from kp_training.settings import check_least
from kp_training.train_config import PLAIN

# Two epochs of COCO's 118,000 photographs, four a step.
PAPER_TRAINING = {"steps": 59000, "batch_size": 4, "learning_rate": 1e-3} | PLAIN


@dataclass(frozen=True)
class ResidualConfig:
    """Settings of Residual.

    detector: ``sift``, ``rootsift`` or ``surf`` (extended).  upright: no orientations, one point a location.
    contrast: the detector's threshold, 0 = its own.  points: at most so many a view in training.
    fusion, small, channels, normalise_cnn, relu_last: see ResidualNet; fewer channels are for small machines; short
    runs gain by normalise_cnn (M.Score .362 against .351 after 150 steps, one seed).
    margin, safe_radius (pixels): see `triplet_loss`.  match_radius: pixels between two sightings of one point.
    geometry, style, height, width: of the views, see PairConfig; the paper does not say, so they are KP2D's.
    """

    detector: str = "sift"
    upright: bool = False
    contrast: float = 0.0
    points: int = 512
    fusion: bool = True
    small: bool = False
    channels: int = 64
    normalise_cnn: bool = False
    relu_last: bool = False
    margin: float = 2.0
    safe_radius: float = 8.0
    match_radius: float = 3.0
    geometry: str = "kp2d"
    style: str = "kp2d"
    height: int = 240
    width: int = 320


class Residual:
    """See the module; raises InputError for a detector that is unknown or not here, and for sizes that cannot be."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig) -> None:
        check_least(config, {"points": 2, "channels": 1, "height": 32, "width": 32, "contrast": 0, "margin": 0,
                             "safe_radius": 0, "match_radius": 0})
        if config.height % ResidualNet.size_multiple or config.width % ResidualNet.size_multiple:
            raise InputError(f"height={config.height}, width={config.width}: expected multiples of "
                             f"{ResidualNet.size_multiple}")
        self.config = config
        self.detector = PointsParameters(config.detector, config.upright, config.contrast or None, config.fusion)
        self.classical_size = find_detector("residual", self.detector, config.points).descriptor_size
        self.variant = "-".join([config.detector, *(name for name in ("upright", "small") if getattr(config, name)),
                                 *([] if config.fusion else ["no_fusion"])])

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("train", self._network, self._pairs, self._losses, lambda network: network, PAPER_TRAINING),)

    def _network(self) -> nn.Module:
        config = self.config
        return ResidualNet(self.classical_size, config.channels, config.fusion, config.small, config.normalise_cnn,
                           config.relu_last)

    def _pairs(self, context: Context) -> DescribedPairs:
        config = self.config
        views = PairConfig(geometry=config.geometry, style=config.style, color="rgb", height=config.height,
                           width=config.width)
        pairs = HomographyPairs(context.images, views, context.seed)
        return DescribedPairs(pairs, self.detector, config.points, config.match_radius)

    def _losses(self, run: Run, network: nn.Module, batch: DescribedBatch) -> dict[str, Tensor]:
        """Each view's points seek their partners in the other."""
        config = self.config
        inputs = [torch.cat(images_to_float(batch)), torch.cat([batch.keypoints0, batch.keypoints1])]
        if config.fusion:
            inputs.append(torch.cat([batch.descriptors0, batch.descriptors1]))
        first, second = run(network, *inputs).chunk(2)
        forward = triplet_loss(first, second, batch.keypoints1, batch.partners0, batch.valid1, config.margin,
                               config.safe_radius)
        back = triplet_loss(second, first, batch.keypoints0, batch.partners1, batch.valid0, config.margin,
                            config.safe_radius)
        watched = {name: (forward[name] + back[name]) / 2 for name in forward if name != "loss"}
        matched = (batch.partners0 >= 0).float().sum(1).mean()
        return {"loss": forward["loss"] + back["loss"], **watched, "matched": matched}

    def decoding(self) -> Decoding:
        detector = self.detector
        parameters: dict[str, Any] = {"detector": detector.detector, "upright": detector.upright,
                                      "contrast": detector.contrast, "fusion": detector.fusion}
        return Decoding("points", parameters, ("point_descriptors",), self._points)

    def _points(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return point_inputs(find_detector("residual", self.detector, 1000).extract(image), self.detector)
