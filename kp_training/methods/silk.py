"""SiLK: every pixel of one view must find itself among all pixels of the other, and the detector learns which do.

"SiLK: Simple Learned Keypoints", Gleize et al., ICCV 2023.  A pair is a crop of a photograph and its warp, each lit
in its own way.  Expected while training: the detector's logits first sink together, since hardly any pixel finds
itself yet, and recover as the descriptors learn; until then the scores rank little.

``network=silk`` is the paper's; fewer ``channels`` and ``padding`` leave it.  ``network=compact`` is ours for small
machines.  Its descriptors, one for 8×8 pixels, cannot tell neighbouring pixels apart, so that SiLK's objective over
all pixels means nothing there.  What is kept: InfoNCE both ways, between a pixel drawn in each cell and where it
lies in the other view, and a detector that learns who wins.  What is ours: that detector is two, a reliability a
cell, which has SiLK's target, and scores for pixels, where a draw succeeds if both views draw the same pixel *and*
its descriptors find each other (``compact_objective``, ``matched_only``); and corners that survive many warps help
the scores to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.corners import CornerPoints
from kp_training.data.images import Images
from kp_training.data.pairs import HomographyPairs, PairBatch, PairConfig
from kp_training.data.posed_pairs import PosedBatch
from kp_training.losses.blockwise import BLOCK
from kp_training.losses.silk import draw_pairs, silk_losses, warp_pairs
from kp_training.methods.base import Context, Decoding, Run, Stage, images_to_float
from kp_training.methods.compact_objective import DualSoftmaxConfig, dual_softmax_objective
from kp_training.networks.compact import CompactNet, DeployedCompact
from kp_training.networks.silk import LENGTH, MARGIN, DeployedSilk, SilkNet
from kp_training.settings import check_sides
from kp_training.train_config import PLAIN

PAPER_CHANNELS = 64
PAPER_TRAINING = {"steps": 100_000, "batch_size": 1, "learning_rate": 1e-4} | PLAIN
REDUCED_TRAINING = {"batch_size": 2, "learning_rate": 2e-3}
REDUCED_POSITIONS = 512
COMPACT_TRAINING = {"batch_size": 16, "learning_rate": 2e-3}


@dataclass(frozen=True)
class SharedConfig(DualSoftmaxConfig):
    """Settings that SiLK has on any pairs of views; see SilkConfig."""

    network: str = "silk"
    channels: int = PAPER_CHANNELS
    padding: bool = False
    style: str = "auto"
    height: int = 0
    width: int = 0
    positions: int = 0
    block: int = BLOCK
    recompute: bool = False
    temperature: float = 0.1
    corner_weight: float = 3.0
    repeatability_weight: float = 4.0
    penalty: float = 0.3
    matched_only: bool = True


@dataclass(frozen=True)
class SilkConfig(SharedConfig):
    """Settings of SiLK; ``auto``, and 0 where it says so, follow the network.

    network: ``silk`` or ``compact``.  channels: of the first half of silk's layers; 64 is the paper's.  padding: zeros
    around silk's convolutions, so that its maps are of the image's size.
    geometry: see PairConfig; auto is ``silk``, and ``wide`` for compact.  style: auto is ``silk``, the paper's set A,
    and ``camera`` for compact; ``silk_hpatches`` is its set B.
    height, width: of the views in pixels; 0 = the paper's 164, with padding the 146 of its maps, 192 for compact.
    temperature: of similarities of descriptors of length √2.
    positions: so many pixels of a pair, drawn anew at each step, look for themselves among all of the other view;
    −1 = all that both views show, as in the paper; 0 = all for 64 channels, 512 for fewer.
    block: similarities in memory at a time.  recompute: silk's layers run again for the gradient instead of keeping
    what they gave; so a pair of 480×640 trains within 8 GB.
    turn_share: of wide pairs, see PairConfig.  The others are compact's, see DualSoftmaxConfig.

    A narrower silk (channels=16 is for CPUs) and compact are trained with other defaults, ours: batch 2 and 16,
    learning rate 2e-3 falling as a cosine, averaged weights.
    """

    geometry: str = "auto"
    turn_share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.turn_share <= 1:
            raise InputError(f"turn_share={self.turn_share:g}: expected a share from 0 to 1")


@dataclass(frozen=True)
class Kind:
    """What follows from the network's name and shape.

    losses: as in Stage, with the config first.  geometry, style, side: of the pairs, where the config leaves them open.
    multiple, least: what sides of the views must be a multiple of, and their least.
    decoding: parameters of the decoder ``full``.  corners: whether the losses want corner labels.
    """

    variant: str
    network: Callable[[], nn.Module]
    losses: Callable[[SharedConfig, Run, nn.Module, PairBatch | PosedBatch], dict[str, Tensor]]
    deployed: Callable[[nn.Module], nn.Module]
    geometry: str
    style: str
    side: int
    training: Mapping[str, Any]
    decoding: dict[str, Any]
    multiple: int = 1
    least: int = 32
    corners: bool = False


def _silk(config: SharedConfig) -> Kind:
    """The paper's network, or a narrower one."""
    return Kind(
        variant=f"{'padded' if config.padding else 'unpadded'}-{config.channels}",
        network=lambda: SilkNet(config.channels, config.padding, config.recompute),
        losses=_all_pixels, deployed=DeployedSilk, geometry="silk", style="silk", side=146 if config.padding else 164,
        training=PAPER_TRAINING if config.channels == PAPER_CHANNELS else REDUCED_TRAINING,
        # As in the paper nothing is suppressed: neighbouring pixels may all be keypoints.
        decoding={"nms_radius": 0, "border": 0 if config.padding else MARGIN, "refine_radius": 0, "threshold": 0.0},
    )


def _compact(config: SharedConfig) -> Kind:
    """Our small network; decoded as kp2d's is."""
    return Kind(
        variant="compact", network=CompactNet, losses=_pixel_a_cell, deployed=DeployedCompact, geometry="wide",
        style="camera", side=192, training=COMPACT_TRAINING,
        decoding={"nms_radius": 1, "border": 4, "refine_radius": 2, "threshold": 0.0}, multiple=32, least=64,
        corners=True,
    )


KINDS = {"silk": _silk, "compact": _compact}


class Silk:
    """See the module; raises InputError for a network or a size that does not exist."""

    Config: type[SharedConfig] = SilkConfig

    def __init__(self, config: SharedConfig) -> None:
        if config.network not in KINDS:
            raise unknown_name("network of silk", config.network, KINDS)
        self.config, self.kind = config, KINDS[config.network](config)
        self.variant = self.kind.variant
        self.style = self.kind.style if config.style == "auto" else config.style
        _check_ranges(config, self.kind)

    def stages(self) -> tuple[Stage, ...]:
        kind = self.kind
        return (Stage("train", kind.network, self.pairs, self.losses, kind.deployed, kind.training),)

    def pairs(self, context: Context) -> Dataset:
        """A crop of a photograph and its warp."""
        config, kind = self.config, self.kind
        geometry = kind.geometry if config.geometry == "auto" else config.geometry
        pairs = PairConfig(geometry, self.style, "gray", config.height or kind.side, config.width or kind.side,
                           config.turn_share)
        return HomographyPairs(context.images, pairs, context.seed, self.corners(context.images, context.cache),
                               context.on_device)

    def corners(self, images: Images, cache: Path) -> CornerPoints | None:
        """What labels are drawn from, where there are any."""
        return CornerPoints(images, cache) if self.kind.corners and self.config.corner_weight > 0 else None

    def losses(self, run: Run, network: nn.Module, batch: PairBatch | PosedBatch) -> dict[str, Tensor]:
        return self.kind.losses(self.config, run, network, batch)

    def decoding(self) -> Decoding:
        return Decoding("full", self.kind.decoding, ("scores", "descriptors"))


def _check_ranges(config: SharedConfig, kind: Kind) -> None:
    check_sides(config, ("height", "width"), kind.multiple, kind.least)
    if config.channels < 1 or config.block < 1 or config.positions < -1:
        raise InputError(f"channels={config.channels}, block={config.block}, positions={config.positions}: expected at "
                         "least 1, 1 and -1")
    if min(config.temperature, config.penalty) <= 0:
        raise InputError(f"temperature={config.temperature:g}, penalty={config.penalty:g}: expected more than 0")


def _all_pixels(
    config: SharedConfig, run: Run, network: nn.Module, batch: PairBatch | PosedBatch
) -> dict[str, Tensor]:
    """The paper's objective; with `positions`, an unbiased estimate of it."""
    logits, descriptors = run(network, torch.cat(images_to_float(batch)))
    count = config.positions or (0 if config.channels == PAPER_CHANNELS else REDUCED_POSITIONS)
    pairs = [draw_pairs(views, max(count, 0))
             for views in warp_pairs(batch.warp(), logits.chunk(2)[0], network.margin)]
    return silk_losses(logits.chunk(2), descriptors.chunk(2), pairs, config.temperature, config.block)


def _pixel_a_cell(
    config: SharedConfig, run: Run, network: nn.Module, batch: PairBatch | PosedBatch
) -> dict[str, Tensor]:
    """Ours for compact, whose descriptors are compared at length 1."""
    return dual_softmax_objective(run, network, batch, replace(config, temperature=config.temperature / LENGTH**2))
