"""SEDM: a detector that starts from nothing finds in posed views what it can find again, and learns to find just that.

"Soft expectation and deep maximization for image feature detection" (METHODS.md section 7).  Rounds of two steps:

- E: the detector's scores of all frames of a scene are averaged in the voxels that their pixels fall into
  (``labels.expectation``); where a frame's voxels are found again most often, without being edges, are its labels.
- M: the detector learns the labels in warped and relit views, by cross-entropy of its heat map.

The first detector is random: convolutions, random or not, answer alike to what looks alike.  The stages ``em1`` …
are the rounds.  The paper takes its descriptors from a trained SuperPoint, a second network (``descriptor_weights``);
without such a file, the stage ``describe`` trains that network on pairs of posed views.  What the
runtime does alike for all methods leaves the paper: it samples descriptors bilinearly (there bicubically), pads images
by their edge's pixels (mirrored), and matches mutually (not stated).

``network=compact`` is ours for small machines: one network, whose full-resolution logits are read as in
``superpoint.py``; its last stage learns descriptors beside the last round's labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kp_frontend.errors import InputError
from kp_training.augment import STYLES
from kp_training.data.labelled_views import LabelledViews, ViewBatch
from kp_training.data.pairs import GEOMETRIES, PairConfig
from kp_training.data.posed import PosedScene, SceneFrames, need_depth
from kp_training.data.posed_pairs import PosedBatch, PosedPairConfig, PosedPairs
from kp_training.labels.scenes import PURPOSE, ExpectationConfig, SceneLabels, label_scenes, read_greys, some_frames
from kp_training.losses.heat_map import heat_map_loss
from kp_training.losses.superpoint import DESCRIPTOR_LOSSES
from kp_training.methods.base import Context, Decoding, Run, Stage, images_to_float
from kp_training.methods.sedm_networks import KINDS, detector_of
from kp_training.methods.superpoint import enough_for
from kp_training.networks.sedm import SedmNet, keep_frozen, settle
from kp_training.networks.superpoint import CELL, NORMS, Deployed, SuperPointNet
from kp_training.settings import check_closest, check_least, check_names, check_sides
from kp_training.weights import load_initial

FEWEST_LABELLED = 24
SETTLING = 16
"""Frames whose statistics an untrained network's batch norms take."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SedmConfig:
    """Settings of SEDM.

    network: ``superpoint`` or ``compact``.
    rounds: of expectation and maximization.  points: at most so many labels of a frame of 480×640, for each
        `anneal_every` rounds; the last number holds for all that follow.  The paper lowers it every third round (how
        many rounds there are, it does not say): rounds=9 anneal_every=3.
    warm: a round starts from the weights of the one before; else from random ones.  The paper does not say.
    frame_height, frame_width: larger frames are shrunk to as many pixels for the expectation; 0 = auto, the paper's
        480×640, and `closest` times 192×256 for compact.
    closest: of the pairs of ``describe``, see PosedPairConfig.  0 = 2 for compact, so that its frames, and the views
        that are cut out of them, are as sharp as what it will meet, and 1, the paper's.
    voxel, voxel_share, least_angle, edge_filter, smoothing, threshold, fewest: see ExpectationConfig.  A round that
        would learn fewer than `fewest` points a frame learns those of the round before: the good points have vanished.
    frames: at most so many frames are labelled.  0: as many as take no more pixels than the round's views, all in a
        long run.
    geometry, style, turn_share: of the views that are learned, see PairConfig.  height, width: of the views, 0 = auto.
    descriptor_weights: file of a SuperPoint, as MagicLeap published it (norm=none) or of ours, whose descriptors are
        taken as they are.  norm: of that network, see ``networks.superpoint``.
    descriptor_loss: of the stage ``describe``, as of superpoint.  pair_height, pair_width: of its pairs, 0 = auto.
    least_overlap, most_overlap: of its pairs, see PosedPairConfig.
    trunk: whether compact's rounds train all layers; false: only those of the scores, so that the descriptors stay
        those of ``--init`` and there is no stage ``describe``.
    """

    network: str = "superpoint"
    rounds: int = 3
    points: str = "2000,1700,1200"
    anneal_every: int = 1
    warm: bool = True
    frame_height: int = 0
    frame_width: int = 0
    closest: float = 0.0
    voxel: float = 0.0
    voxel_share: float = 0.002
    least_angle: float = 2.0
    edge_filter: bool = True
    smoothing: float = 1.0
    threshold: float = 0.001
    fewest: int = 20
    frames: int = 0
    geometry: str = "wide"
    style: str = "sedm"
    turn_share: float = 0.0
    height: int = 0
    width: int = 0
    descriptor_weights: str = ""
    norm: str = "prp"
    descriptor_loss: str = "dense"
    pair_height: int = 0
    pair_width: int = 0
    least_overlap: float = 0.3
    most_overlap: float = 0.95
    trunk: bool = True

    def points_of(self, number: int) -> int:
        """Most points of a frame of 480×640 in round `number`, from 1."""
        counts = [int(word) for word in self.points.split(",")]
        return counts[min((number - 1) // self.anneal_every, len(counts) - 1)]


class Sedm:
    """See the module; raises InputError for settings that do not exist or do not fit."""

    Config = SedmConfig

    def __init__(self, config: SedmConfig) -> None:
        tables = {"network": KINDS, "norm": NORMS, "descriptor_loss": DESCRIPTOR_LOSSES, "geometry": GEOMETRIES,
                  "style": STYLES}
        check_names(config, tables, "sedm")
        self.config, self.kind = config, KINDS[config.network]
        self.deployed = partial(Deployed, scores=self.kind.scores)
        _check(config, self.kind.size_multiple)
        self.closest = config.closest or self.kind.closest
        self.given = bool(config.descriptor_weights) or not config.trunk
        ending = "given" if self.given else config.descriptor_loss
        self.variant = f"{config.network}-{'warm' if config.warm else 'cold'}-{ending}"

    def stages(self) -> tuple[Stage, ...]:
        rounds = [Stage(f"em{number}", self._builder(number), partial(self._views, number=number), self._maximize,
                        partial(self.deployed, outputs=2 if self._given_in(number) else 1), self.kind.round,
                        describes=self._given_in(number), start=partial(self._start, number=number))
                  for number in range(1, self.config.rounds + 1)]
        if self.given:
            return tuple(rounds)
        training = enough_for(self.config.descriptor_loss, self.kind.describe)
        network = partial(self.kind.both, self.config.norm, self.config.trunk)
        describe = Stage("describe", network, self._pairs, self._describe, partial(self.deployed, outputs=2),
                         training, start=self._start_describing)
        return (*rounds, describe)

    def decoding(self) -> Decoding:
        return Decoding("full", self.kind.decoding, ("scores", "descriptors"))

    def _builder(self, number: int) -> Callable[[], nn.Module]:
        """Of the network of a round."""
        build = self.kind.given if self._given_in(number) else self.kind.detector
        return partial(build, self.config.norm, self.config.trunk)

    def _given_in(self, number: int) -> bool:
        """Whether the network of a round has descriptors that are given."""
        return self.given and number == self.config.rounds

    def _start(self, network: nn.Module, context: Context, number: int) -> None:
        """The weights that a round starts from beside those of ``--init``.

        Files that lack or do not fit are known here, before a scene is rendered.
        """
        if number == 1 and not self.config.trunk and not context.initial(network):
            raise InputError("trunk=false keeps the layers of --init; give it a checkpoint of compact")
        if self.config.descriptor_weights:
            describer = _read_describer(self.config)
            if isinstance(network, SedmNet):
                network.describer.load_state_dict(describer)
        if number > 1 and self.config.warm:
            detector = detector_of(network)
            detector.load_state_dict(detector_of(context.trained(f"em{number - 1}")).state_dict())

    def _start_describing(self, network: nn.Module, context: Context) -> None:
        detector_of(network).load_state_dict(context.trained(f"em{self.config.rounds}").state_dict())

    def _views(self, context: Context, number: int) -> Dataset:
        """Views of frames with the labels of round `number`."""
        scenes = self._scenes(context)
        labels = self._labels(context, scenes, number)
        usable = np.flatnonzero(np.diff(labels.rows.starts))
        config = self.config
        pairs = PairConfig(config.geometry, config.style, "gray", *self._view_size, turn_share=config.turn_share)
        return LabelledViews(SceneFrames(scenes), usable, labels, pairs, context.seed)

    @property
    def _view_size(self) -> tuple[int, int]:
        return self.config.height or self.kind.views[0], self.config.width or self.kind.views[1]

    def _expectation(self, number: int) -> ExpectationConfig:
        config, multiple = self.config, self.kind.size_multiple
        height, width = (round(self.closest * side / multiple) * multiple for side in self.kind.frames)
        return ExpectationConfig(
            config.frame_height or height, config.frame_width or width, multiple,
            threshold=config.threshold, fewest=config.fewest, points=config.points_of(number), voxel=config.voxel,
            voxel_share=config.voxel_share, least_angle=config.least_angle, edge_filter=config.edge_filter,
            smoothing=config.smoothing,
        )

    def _scenes(self, context: Context) -> list[PosedScene]:
        """The scenes, or those of their frames that a round can afford to label."""
        expectation = self._expectation(1)
        scenes = context.scenes(expectation.height, expectation.width)
        need_depth(scenes, PURPOSE)
        affordable = context.items * np.prod(self._view_size) // (expectation.height * expectation.width)
        return some_frames(scenes, self.config.frames or max(FEWEST_LABELLED, int(affordable)), context.seed)

    def _labels(self, context: Context, scenes: Sequence[PosedScene], number: int) -> SceneLabels:
        """What the network before round `number` finds again, or if that is nothing, what the one before it did."""
        config = self._expectation(number)
        detector = context.trained(f"em{number - 1}") if number > 1 else self._first(context, scenes, config)
        labels = label_scenes(self.deployed(detector, outputs=1).eval(), scenes, config, context.cache, context.device)
        if labels.mean >= config.fewest:
            return labels
        if number > 1:
            log.warning("em%d: the good points have vanished (%.1f of a frame, expected %d): learning those of em%d",
                        number, labels.mean, config.fewest, number - 1)
            return self._labels(context, scenes, number - 1)
        raise InputError(f"em1: {labels.mean:.1f} points of a frame are found again (expected {config.fewest}); are "
                         "the poses right (kp_training check_scene), do frames overlap, is threshold= low enough?")

    def _first(self, context: Context, scenes: Sequence[PosedScene], config: ExpectationConfig) -> nn.Module:
        """The network of the first expectation: that of ``--init``, or the random one that the first round trains."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            network = self._builder(1)()
        network = network.to(context.device)
        if not context.initial(network):
            settle(detector_of(network), read_greys(scenes, SETTLING, config, context.device))
        return network.eval()

    def _maximize(self, run: Run, network: nn.Module, batch: ViewBatch) -> dict[str, Tensor]:
        keep_frozen(network)
        logits = run(detector_of(network), batch.image.float() / 255)[0]
        return {"loss": self._heat(logits, batch.labels, batch.mask)}

    def _heat(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        maps = self.kind.log_probabilities(logits, labels[:, None], mask[:, None])
        return heat_map_loss(*maps)

    def _pairs(self, context: Context) -> Dataset:
        config, scenes = self.config, self._scenes(context)
        labels = self._labels(context, scenes, config.rounds + 1) if self.kind.joint else None
        pairs = PosedPairConfig(
            least_overlap=config.least_overlap, most_overlap=config.most_overlap, style=config.style,
            height=config.pair_height or self.kind.pairs[0], width=config.pair_width or self.kind.pairs[1],
            closest=self.closest,
        )
        return PosedPairs(scenes, pairs, context.seed, labels, labels.known_cells if labels else None)

    def _describe(self, run: Run, network: nn.Module, batch: PosedBatch) -> dict[str, Tensor]:
        keep_frozen(network)
        images = torch.cat(images_to_float(batch))
        loss = DESCRIPTOR_LOSSES[self.config.descriptor_loss]
        if not self.kind.joint:
            descriptors = run(network.describer, images)
            return {"loss": loss(*descriptors.chunk(2), batch.warp(), batch.mask0, batch.mask1)}
        logits, descriptors, _ = run(network, images)
        labels = torch.cat([batch.labels0, batch.labels1])
        known = torch.cat([batch.known0, batch.known1])
        # A cell's share, as superpoint's is: beside another loss, the size of the images would tell.
        detector = self._heat(logits, labels, known) / (labels[0].numel() / CELL**2)
        descriptor = loss(*descriptors.chunk(2), batch.warp(), batch.mask0, batch.mask1)
        return {"loss": detector + descriptor, "detector": detector, "descriptor": descriptor}


def _read_describer(config: SedmConfig) -> dict[str, Tensor]:
    """Weights of the second network from the file that the config names."""
    network = SuperPointNet(config.norm)
    load_initial(network, Path(config.descriptor_weights))
    return {name: values for name, values in network.state_dict().items() if not name.startswith("detector.")}


def _check(config: SedmConfig, multiple: int) -> None:
    check_sides(config, ("frame_height", "frame_width", "height", "width", "pair_height", "pair_width"), multiple)
    check_closest(config)
    check_least(config, {"rounds": 1, "anneal_every": 1, "voxel": 0, "voxel_share": 1e-6, "least_angle": 0,
                         "smoothing": 0, "fewest": 1, "frames": 0})
    if not 0 < config.threshold < 1:
        raise InputError(f"threshold={config.threshold:g}: expected a probability between 0 and 1")
    words = config.points.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"points={config.points}: expected numbers above 0 with commas between, as in 2000,1700,1200")
    if config.network == "compact" and config.descriptor_weights:
        raise InputError("descriptor_weights: compact describes by itself; use --init to start from its weights, or "
                         "network=superpoint")
    if not config.trunk and (config.network != "compact" or not config.warm):
        raise InputError("trunk=false: expected network=compact and warm=true, since only its other layers are trained")
