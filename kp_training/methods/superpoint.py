"""SuperPoint: a detector taught on drawn shapes labels photographs for the next one; descriptors join at the end.

"SuperPoint: self-supervised interest point detection and description", DeTone et al., CVPR workshops 2018, with the
numbers of rpautrat's public code where it is the one that others could reproduce (METHODS.md section 2).  The stages:

- ``magicpoint``: a detector learns the corners of synthetic shapes.
- ``round1`` …: the last detector labels photographs by homographic adaptation, a new one learns them.
- ``joint``: the last detector's labels, and descriptors of two views of a photograph, in one network.

``network=compact`` runs through the same stages with our network for small machines.  Its logits, made at full
resolution, are read as cells that begin anywhere, so that they learn no cell borders, and its scores are each pixel
against its cell's dustbin, which knows of none either.  Its reliability is neither trained nor multiplied into the
scores: SuperPoint's scores are probabilities of a point, and adaptation's threshold takes them to be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kp_frontend.errors import InputError
from kp_training.augment import STYLES
from kp_training.data.images import Chosen
from kp_training.data.pairs import GEOMETRIES, HomographyPairs, PairBatch, PairConfig
from kp_training.data.posed_pairs import PosedBatch
from kp_training.data.synthetic_shapes import ShapeBatch, ShapesConfig, SyntheticShapes
from kp_training.labels.homographic import AdaptationConfig, label_images
from kp_training.losses.detection import shift_grid, with_dustbin
from kp_training.losses.superpoint import CELL, DESCRIPTOR_LOSSES, detector_loss
from kp_training.methods.base import Context, Decoding, Run, Stage, images_to_float
from kp_training.networks.compact import CompactNet
from kp_training.networks.superpoint import NORMS, Deployed, MagicPointNet, SuperPointNet, scores_of_cells
from kp_training.settings import check_least, check_names, check_sides
from kp_training.train_config import PLAIN
from kp_training.weights import load_initial

FEWEST_LABELLED = 8
PASSES_OF_TRAINING = 3
"""Forward passes that a training step costs."""

LEAST_BATCH = {"sparse": 8}
"""Of a stage that describes, for its descriptor loss."""

Cells = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class SuperPointConfig:
    """Settings of SuperPoint.

    network: ``superpoint`` or ``compact``.  norm: of superpoint's layers, see ``networks.superpoint``.
    rounds: how often photographs are labelled; the last time for the joint stage.
    warm: each stage starts from the one before, which the paper's do not; a short run learns more with it.
    teacher: checkpoint, or published file, of a network of this kind, which labels in place of the stages before
        ``joint``; with warm, that stage starts from it as well, so that a model is refined.
    descriptor_loss: ``dense``, ``paper`` (its weights, not normalised) or ``sparse``.
    geometry, style: of the pairs of views, see PairConfig.  height, width: of the views, 0 = auto.
    warps, adapt_height, adapt_width, adapt_threshold, adapt_fewest, adapt_points: see AdaptationConfig.
    adapt_limit: at most so many photographs are labelled.  0: as many as take no longer to label than the stage takes
        to train on them, up to those that it will see; with the paper's steps, a quarter of COCO, where it takes all.
    """

    network: str = "superpoint"
    norm: str = "prp"
    rounds: int = 2
    warm: bool = False
    teacher: str = ""
    descriptor_loss: str = "dense"
    geometry: str = "superpoint"
    style: str = "superpoint"
    height: int = 0
    width: int = 0
    warps: int = 100
    adapt_height: int = 240
    adapt_width: int = 320
    adapt_threshold: float = 0.015
    adapt_fewest: int = 100
    adapt_points: int = 600
    adapt_limit: int = 0


@dataclass(frozen=True)
class Kind:
    """What differs between the networks.

    build: (norm, whether it describes) → network, whose first output are logits and second descriptors.
    cells: logits, B×H×W labels and mask → B×65×h×w logits, labels and mask of the same cells.
    scores: logits → B×1×H×W probabilities.  size_multiple: of images.  shapes, views: height and width.
    magicpoint, round, joint: settings of the loop.  decoding: parameters of the decoder.
    """

    build: Callable[[str, bool], nn.Module]
    cells: Cells
    scores: Callable[[Tensor], Tensor]
    size_multiple: int
    shapes: tuple[int, int]
    views: tuple[int, int]
    magicpoint: dict[str, Any]
    round: dict[str, Any]
    joint: dict[str, Any]
    decoding: dict[str, Any]


class SuperPoint:
    """See the module; raises InputError for settings that do not exist or do not fit."""

    Config = SuperPointConfig

    def __init__(self, config: SuperPointConfig) -> None:
        tables = {"network": KINDS, "norm": NORMS, "descriptor_loss": DESCRIPTOR_LOSSES, "geometry": GEOMETRIES,
                  "style": STYLES}
        check_names(config, tables, "superpoint")
        self.config, self.kind = config, KINDS[config.network]
        check_ranges(config, self.kind.size_multiple, ("height", "width"), LEASTS)
        norm = f"-{config.norm}" if config.network == "superpoint" else ""
        self.variant = f"{config.network}{norm}-{config.descriptor_loss}"

    def stages(self) -> tuple[Stage, ...]:
        kind = self.kind
        names = ["magicpoint", *(f"round{number}" for number in range(1, self.config.rounds))]
        first = Stage("magicpoint", self._detector, self._shapes, self._detect_shapes, self._deployed_detector,
                      kind.magicpoint, describes=False)
        rounds = (Stage(name, self._detector, partial(self._pairs, teacher=teacher), self._detect_pairs,
                        self._deployed_detector, kind.round, describes=False, start=self._start(teacher))
                  for teacher, name in itertools.pairwise(names))
        joint = Stage("joint", partial(kind.build, self.config.norm, True), partial(self._pairs, teacher=names[-1]),
                      self._join, partial(Deployed, scores=kind.scores, outputs=2),
                      enough_for(self.config.descriptor_loss, kind.joint), start=self._start(names[-1]))
        return (joint,) if self.config.teacher else (first, *rounds, joint)

    def decoding(self) -> Decoding:
        return Decoding("full", self.kind.decoding, ("scores", "descriptors"))

    def _detector(self) -> nn.Module:
        return self.kind.build(self.config.norm, False)

    def _deployed_detector(self, network: nn.Module) -> nn.Module:
        return Deployed(network, self.kind.scores, outputs=1)

    def _start(self, teacher: str) -> Callable[[nn.Module, Context], None] | None:
        def load(network: nn.Module, context: Context) -> None:
            network.load_state_dict(network.state_dict() | self._trained(teacher, context).state_dict())

        return load if self.config.warm else None

    def _trained(self, teacher: str, context: Context) -> nn.Module:
        """The network of stage `teacher`, or of the file that takes the place of all stages before the last."""
        if not self.config.teacher:
            return context.trained(teacher)
        network = self.kind.build(self.config.norm, True)
        load_initial(network, Path(self.config.teacher))
        return network.eval().to(context.device)

    def detector(self, teacher: str, context: Context) -> nn.Module:
        """What labels: a Detect (see ``labels.points``) in evaluation mode on the context's device."""
        return Deployed(self._trained(teacher, context), self.kind.scores, outputs=1).eval()

    def _shapes(self, context: Context) -> Dataset:
        height, width = self.kind.shapes
        return SyntheticShapes(ShapesConfig(height=height, width=width), context.seed)

    def _pairs(self, context: Context, teacher: str) -> Dataset:
        """Pairs of views of photographs that the network of stage `teacher` labelled."""
        config, kind = self.config, self.kind
        adaptation = AdaptationConfig(
            warps=config.warps, height=config.adapt_height, width=config.adapt_width, multiple=kind.size_multiple,
            threshold=config.adapt_threshold, fewest=config.adapt_fewest, points=config.adapt_points,
        )
        detector = self.detector(teacher, context)
        count = min(len(context.images), self._labelled(context.items))
        labels = label_images(detector, context.images, count, adaptation, context.seed, context.cache, context.device)
        pairs = PairConfig(config.geometry, config.style, "gray", config.height or kind.views[0],
                           config.width or kind.views[1])
        return HomographyPairs(Chosen(context.images, labels.indices), pairs, context.seed, labels, context.on_device)

    def _labelled(self, items: int) -> int:
        """How many photographs to label for `items` pairs."""
        affordable = 2 * items * PASSES_OF_TRAINING // self.config.warps
        return min(items, self.config.adapt_limit or max(FEWEST_LABELLED, affordable))

    def _detect_shapes(self, run: Run, network: nn.Module, batch: ShapeBatch) -> dict[str, Tensor]:
        logits = run(network, batch.image.float() / 255)[0]
        return {"loss": detector_loss(*self.kind.cells(logits, batch.labels, batch.mask))}

    def _detect_pairs(self, run: Run, network: nn.Module, batch: PairBatch | PosedBatch) -> dict[str, Tensor]:
        # The code's views are all warped; of ours, the first of each pair is not.
        logits = run(network, torch.cat(images_to_float(batch)))[0]
        labels, mask = torch.cat([batch.labels0, batch.labels1]), torch.cat([batch.mask0, batch.mask1])
        return {"loss": detector_loss(*self.kind.cells(logits, labels, mask))}

    def _join(self, run: Run, network: nn.Module, batch: PairBatch | PosedBatch) -> dict[str, Tensor]:
        """Eq. 1: the detector's loss of each view and the descriptors' of both."""
        logits, descriptors = run(network, torch.cat(images_to_float(batch)))[:2]
        views = zip(logits.chunk(2), (batch.labels0, batch.labels1), (batch.mask0, batch.mask1))
        detector = sum(detector_loss(*self.kind.cells(*view)) for view in views)
        loss = DESCRIPTOR_LOSSES[self.config.descriptor_loss]
        descriptor = loss(*descriptors.chunk(2), batch.warp(), batch.mask0, batch.mask1)
        return {"loss": detector + descriptor, "detector": detector, "descriptor": descriptor}


def _build_superpoint(norm: str, describes: bool) -> nn.Module:
    return SuperPointNet(norm) if describes else MagicPointNet(norm)


def _build_compact(norm: str, describes: bool) -> nn.Module:
    """The layers that a stage does not train are frozen."""
    network = CompactNet()
    network.reliability.requires_grad_(False)
    network.describe.requires_grad_(describes)
    return network


def _compact_cells(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of a grid that begins somewhere else at each call; the dustbin's logit is 0."""
    shift = tuple(torch.randint(CELL, (2,)).tolist())
    labels, mask = (shift_grid(maps[:, None], shift, CELL)[:, 0] for maps in (labels, mask))
    return with_dustbin(shift_grid(logits, shift, CELL), CELL), labels, mask


def enough_for(descriptor_loss: str, training: dict[str, Any]) -> dict[str, Any]:
    """Settings of a loop, with the batch that the descriptor loss wants at least."""
    return training | {"batch_size": max(training["batch_size"], LEAST_BATCH.get(descriptor_loss, 1))}


def check_ranges(config: Any, multiple: int, sides: Iterable[str], leasts: Mapping[str, int]) -> None:
    """Raises InputError for settings `sides` that are no `multiple` or below 64 (0 = auto), or that are below `leasts`,
    or for an ``adapt_threshold`` that is no probability."""
    check_sides(config, sides, multiple)
    check_least(config, leasts)
    if not 0 < config.adapt_threshold < 1:
        raise InputError(f"adapt_threshold={config.adapt_threshold:g}: expected a probability between 0 and 1")


# Views come in pairs, so that half the paper's batch of 32 is as many.  A round's rate is not stated: MagicPoint's.
# The joint stage's is the code's, since the paper's 1e-3 did not converge for others.  Compact's settings are ours.
KINDS = {
    "superpoint": Kind(
        _build_superpoint, lambda *views: views, scores_of_cells, SuperPointNet.size_multiple, (120, 160), (240, 320),
        magicpoint=PLAIN | {"steps": 200_000, "batch_size": 32, "learning_rate": 1e-3},
        round=PLAIN | {"steps": 30_000, "batch_size": 16, "learning_rate": 1e-3},
        joint=PLAIN | {"steps": 300_000, "batch_size": 2, "learning_rate": 1e-4},
        decoding={"nms_radius": 4, "border": 4, "refine_radius": 0, "threshold": 0.005},
    ),
    "compact": Kind(
        _build_compact, _compact_cells, torch.sigmoid, CompactNet.size_multiple, (128, 160), (192, 192),
        magicpoint={"batch_size": 32, "learning_rate": 2e-3},
        round={"batch_size": 16, "learning_rate": 2e-3},
        joint={"batch_size": 16, "learning_rate": 2e-3},
        decoding={"nms_radius": 2, "border": 4, "refine_radius": 2, "threshold": 0.005},
    ),
}
LEASTS = {"rounds": 1, "warps": 1, "adapt_height": 64, "adapt_width": 64, "adapt_fewest": 0, "adapt_points": 1,
          "adapt_limit": 0}
