"""The networks that SEDM trains, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_training.losses.detection import shift_grid, with_dustbin
from kp_training.networks.compact import CompactNet
from kp_training.networks.sedm import SedmDetector, SedmNet
from kp_training.networks.superpoint import CELL, scores_of_cells
from kp_training.train_config import PLAIN


@dataclass(frozen=True)
class Kind:
    """What differs between the networks.

    detector: norm and trunk of SedmConfig → network of a round.  given: the same, with descriptors that stay.
    both: norm and trunk → network of the stage ``describe``.  joint: whether that stage trains the detector too.
    log_probabilities: logits, B×1×H×W labels and mask → log-probabilities of pixels, their labels and mask.
    scores: logits → B×1×H×W probabilities.  size_multiple: of images.
    frames, views, pairs: heights and widths where the config leaves them open.  closest: of frames and pairs, likewise.
    round, describe: settings of the loop.  decoding: parameters of the decoder.
    """

    detector: Callable[[str, bool], nn.Module]
    given: Callable[[str, bool], nn.Module]
    both: Callable[[str, bool], nn.Module]
    joint: bool
    log_probabilities: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    scores: Callable[[Tensor], Tensor]
    size_multiple: int
    frames: tuple[int, int]
    views: tuple[int, int]
    pairs: tuple[int, int]
    closest: float
    round: dict[str, Any]
    describe: dict[str, Any]
    decoding: dict[str, Any]


def _two_networks(norm: str, trunk: bool, frozen: str) -> nn.Module:
    network = SedmNet(norm)
    getattr(network, frozen).requires_grad_(False)
    return network


def _compact_detector(norm: str, trunk: bool) -> nn.Module:
    """The layers that a round does not train are frozen."""
    network = CompactNet()
    network.requires_grad_(trunk)
    for layers in (network.score_half, network.score_quarter, network.score_eighth, network.score):
        layers.requires_grad_(True)
    for layers in (network.describe, network.reliability):
        layers.requires_grad_(False)
    return network


def _compact(norm: str, trunk: bool) -> nn.Module:
    network = CompactNet()
    network.reliability.requires_grad_(False)
    return network


def _cells(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return F.pixel_shuffle(logits.log_softmax(1)[:, :-1], CELL), labels, mask


def _shifted_cells(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of a grid that begins somewhere else at each call; the dustbin's logit is 0."""
    shift = tuple(torch.randint(CELL, (2,)).tolist())
    logits, labels, mask = (shift_grid(maps, shift, CELL) for maps in (logits, labels, mask))
    return F.pixel_shuffle(with_dustbin(logits, CELL)[:, :-1], CELL), labels, mask


def detector_of(network: nn.Module) -> nn.Module:
    """The part of a network whose first output are the logits."""
    return network.detector if isinstance(network, SedmNet) else network


# The paper's 300 epochs of 45,000 frames are 421,875 steps.  Its views are whole frames of 480×640; ours are crops of
# them, which small machines can train, unless height and width say otherwise.  Compact's settings are ours.
PAPER = PLAIN | {"learning_rate": 1e-4}
KINDS = {
    "superpoint": Kind(
        lambda norm, trunk: SedmDetector(), partial(_two_networks, frozen="describer"),
        partial(_two_networks, frozen="detector"), False, _cells, scores_of_cells, CELL, (480, 640), (120, 160),
        (240, 320), closest=1.0, round=PAPER | {"steps": 421_875, "batch_size": 32},
        describe=PAPER | {"steps": 300_000, "batch_size": 2},
        decoding={"nms_radius": 3, "border": 4, "refine_radius": 0, "threshold": 0.025},
    ),
    "compact": Kind(
        _compact_detector, _compact_detector, _compact, True, _shifted_cells, torch.sigmoid, CompactNet.size_multiple,
        (192, 256), (128, 160), (192, 256), closest=2.0, round={"batch_size": 32, "learning_rate": 2e-3},
        describe={"batch_size": 16, "learning_rate": 2e-3},
        decoding={"nms_radius": 2, "border": 4, "refine_radius": 2, "threshold": 0.025},
    ),
}
