"""PoSFeat: descriptors, then a detector, learn from views of which only the poses are known.

"Decoupling makes weakly supervised local feature better", Li et al., CVPR 2022, with the numbers of its public code
(METHODS.md section 5).  The stages:

- ``describe``: a point is found in the other view, and should be found on its epipolar line (``line_to_window``, or
  ``coarse_to_fine`` as in CAPS).
- ``detect``: descriptors stay as they are; keypoints are drawn, matched, and rewarded where the match fits the poses.

Trained jointly both are one stage, ``joint``; with ``detector=sift`` the first is all, and SIFT finds the points.
Depth is never looked at; where scenes have it, it may choose pairs that see the same.

``network=compact`` is ours for small machines.  All of it learns to describe; then its score layers and its
reliability learn to detect, together, since the product of both is what ranks its points, on a grid that begins
anywhere.  What a cell draws it keeps with a chance of one half or more, as in the paper's network: free to draw
nothing, a detector with descriptors of a few minutes learned to draw nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_frontend.decoding import PointsParameters
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.extractors.residual import find_detector, point_inputs
from kp_training.augment import STYLES
from kp_training.data.posed_pairs import PosedBatch, PosedPairConfig, PosedPairs
from kp_training.geometry.epipolar import EpipolarViews, fundamental_matrix
from kp_training.geometry.sampling import to_cells
from kp_training.losses.coarse_to_fine import Levels, coarse_to_fine_loss
from kp_training.losses.detection import shift_grid
from kp_training.losses.line_to_window import line_to_window_loss
from kp_training.losses.policy_gradient import (
    Reward,
    accepting_policy,
    draw_actions,
    drawn_points,
    policy_gradient_loss,
)
from kp_training.methods.base import Context, Decoding, Run, Stage, images_to_float
from kp_training.networks.compact import CompactNet, DeployedCompact
from kp_training.networks.pos_feat import (
    AtCorners,
    AtPoints,
    DeployedPosFeat,
    DetectingCompact,
    PosFeatMaps,
    PosFeatNet,
    detecting_parts,
)
from kp_training.settings import check_closest, check_least, check_names, check_sides
from kp_training.train_config import PLAIN
from kp_training.weights import read_weights

CELL = 8
LEAST_PARALLAX = 0.02
"""Between the cameras of a pair, in distances to the scene [ours]: nearer ones have epipolar lines of noise."""
PAPER = PLAIN | {"schedule": "drop", "drop_factor": 0.1}
# The paper's own SGD at 1e-3 does not converge for its code, which has Adam at 1e-4.
PAPER_DESCRIBE = PAPER | {"steps": 100_000, "batch_size": 8, "learning_rate": 1e-4, "drop_at": 0.9}
PAPER_DETECT = PAPER | {"steps": 5_000, "batch_size": 6, "learning_rate": 1e-3, "drop_at": 0.8, "optimizer": "sgd"}
COMPACT_TRAINING = {"batch_size": 8, "learning_rate": 1e-3}


class Model(NamedTuple):
    """A row of the paper's table of variants."""

    training: str
    detector: str
    description: str


MODELS = {
    1: Model("decoupled", "learned", "line_to_window"),
    2: Model("joint", "learned", "line_to_window"),
    3: Model("decoupled", "sift", "line_to_window"),
    4: Model("decoupled", "sift", "coarse_to_fine"),
}
SWITCHES = {"training": ("decoupled", "joint"), "detector": ("learned", "sift"),
            "description": ("line_to_window", "coarse_to_fine")}
CHOICES = ("auto", "rotation", "overlap")


@dataclass(frozen=True)
class PosFeatConfig:
    """Settings of PoSFeat; ``auto``, and 0 where it says so, follow the model or the network.

    model: of the paper's table, 1 to 4, which stand for
    training: ``decoupled`` or ``joint`` (2).
    detector: ``learned``, or ``sift`` (3, 4).
    description: ``line_to_window``, or ``coarse_to_fine`` (4), whose descriptors have 256 numbers, of both levels.
    network: ``posfeat`` or ``compact``.  backbone_weights: torchvision's file of ResNet-50's weights (posfeat); the
    paper starts from ImageNet's, without a file the weights are random.
    window: see ``line_to_window_loss``; 0 = 0.1, or CAPS's 0.125 of coarse_to_fine.  line_samples: on an epipolar line.
    farthest: pixels off the line beyond which a point is not counted.  cycle_weight: of coming back, in coarse_to_fine.
    reward, wrong, tolerance (pixels), penalty: of the detector, see ``policy_gradient``.
    normalise: its loss is divided by the number of points, as in the paper; the code sums, at the same learning rate.
    pairs: ``rotation`` (viewing directions at most largest_rotation degrees apart), ``overlap`` (by depth), or auto:
    overlap where all scenes have depth.
    style: auto is ``caps``, and ``camera`` for compact.
    height, width: of the views, 0 = the paper's 480×640, 240×320 on a CPU, where a step of the paper's takes minutes,
    and 256×320 for compact; farthest and tolerance are pixels of the views at any size.
    closest: see PosedPairConfig; 0 = 2 for compact where all scenes have depth, else 1, the paper's.
    """

    model: int = 1
    training: str = "auto"
    detector: str = "auto"
    description: str = "auto"
    network: str = "posfeat"
    backbone_weights: str = ""
    window: float = 0.0
    line_samples: int = 100
    farthest: float = 48.0
    cycle_weight: float = 0.1
    reward: float = 1.0
    wrong: float = -0.25
    tolerance: float = 2.0
    penalty: float = 0.001
    normalise: bool = True
    pairs: str = "auto"
    largest_rotation: float = 80.0
    style: str = "auto"
    height: int = 0
    width: int = 0
    closest: float = 0.0


class Seen(NamedTuple):
    """What a network sees of N views.

    policy: origin of the cells → N×64×h×w log-probability that a cell draws that pixel.
    descriptors: N×D×h×w.  levels: coarse_to_fine's.
    """

    policy: Callable[[tuple[int, int]], Tensor]
    descriptors: Tensor
    levels: Levels | None


@dataclass(frozen=True)
class Kind:
    """What differs between the networks.

    build: (coarse level, stage's name) → network.  see: what it gives for B×C×H×W images.
    described, deployed: of a network that describes only, and of one that detects too.
    views, cpu_views: height and width where the config leaves them open, on a GPU and on a CPU.
    closest: of the views, where all scenes have depth.  shift: whether the cells begin anywhere.
    training: of each stage.  decoding: of the decoder ``full``.
    """

    build: Callable[[bool, str], nn.Module]
    see: Callable[[Any], Seen]
    described: Callable[[nn.Module], nn.Module]
    deployed: Callable[[nn.Module], nn.Module]
    color: str
    style: str
    views: tuple[int, int]
    cpu_views: tuple[int, int]
    closest: float
    shift: bool
    training: Mapping[str, dict[str, Any]]
    decoding: dict[str, Any]


class PosFeat:
    """See the module; raises InputError for settings that do not exist or do not go together."""

    Config = PosFeatConfig

    def __init__(self, config: PosFeatConfig) -> None:
        self.model = _resolved_model(config)
        _check_settings(config, self.model)
        self.config, self.kind = config, KINDS[config.network]
        self.coarse = self.model.description == "coarse_to_fine"
        self.variant = "-".join([config.network, self.model.description, self.model.detector,
                                 *(["joint"] if self.model.training == "joint" else [])])
        self.points = PointsParameters("sift", fusion=False)

    def stages(self) -> tuple[Stage, ...]:
        kind, sift = self.kind, self.model.detector == "sift"
        if self.model.training == "joint":
            return (self._stage("joint", self._join, kind.deployed, self._load_backbone),)
        describe = self._stage("describe", self._describe, AtPoints if sift else kind.described, self._load_backbone)
        return (describe,) if sift else (describe, self._stage("detect", self._detect, kind.deployed, _load_described))

    def decoding(self) -> Decoding:
        if self.model.detector == "learned":
            return Decoding("full", self.kind.decoding, ("scores", "descriptors"))
        parameters = {name: getattr(self.points, name) for name in ("detector", "upright", "contrast", "fusion")}
        return Decoding("points", parameters, ("point_descriptors",), self._sift_points)

    def _stage(self, name: str, losses: Callable, deployed: Callable, start: Callable) -> Stage:
        return Stage(name, partial(self.kind.build, self.coarse, name), self._pairs, losses, deployed,
                     self.kind.training[name], start=start)

    def _pairs(self, context: Context) -> PosedPairs:
        """Of all pairs that may be; the paper has up to 5000 a scene, and drops those of fewer than 2000 candidates."""
        config, kind = self.config, self.kind
        views = kind.cpu_views if context.device.type == "cpu" else kind.views
        height, width = config.height or views[0], config.width or views[1]
        closest = config.closest or kind.closest
        scenes = context.scenes(round(closest * height), round(closest * width))
        depth = all(scene.has_depth for scene in scenes)
        if not config.closest and not depth:
            closest = 1.0  # without depth, parts of two frames may show nothing in common
        choice = config.pairs
        if choice == "auto":
            choice = "overlap" if depth else "rotation"
        style = kind.style if config.style == "auto" else config.style
        pairs = PosedPairConfig(choice=choice, largest_rotation=config.largest_rotation, least_parallax=LEAST_PARALLAX,
                                style=style, color=kind.color, height=height, width=width, aspect="stretch",
                                closest=closest)
        return PosedPairs(scenes, pairs, context.seed)

    def _describe(self, run: Run, network: nn.Module, batch: PosedBatch) -> dict[str, Tensor]:
        seen = self.kind.see(run(network, torch.cat(images_to_float(batch))))
        return self._description_losses(seen, network.stride, views_of(batch))

    def _detect(self, run: Run, network: nn.Module, batch: PosedBatch) -> dict[str, Tensor]:
        seen = self.kind.see(run(network, torch.cat(images_to_float(batch))))
        return self._detection_losses(seen, network.stride, views_of(batch))

    def _join(self, run: Run, network: nn.Module, batch: PosedBatch) -> dict[str, Tensor]:
        """Both at once; the weights are not stated, nor that the descriptors learn from the chances of matches."""
        seen, views = self.kind.see(run(network, torch.cat(images_to_float(batch)))), views_of(batch)
        description = self._description_losses(seen, network.stride, views)
        detection = self._detection_losses(seen, network.stride, views)
        total = description.pop("loss") + detection.pop("loss")
        return {"loss": total, **description, **detection}

    def _description_losses(self, seen: Seen, stride: int, views: EpipolarViews) -> dict[str, Tensor]:
        config = self.config
        if seen.levels is not None:
            pair = [Levels(*maps, *seen.levels[2:]) for maps in zip(*(maps.chunk(2) for maps in seen.levels[:2]))]
            return coarse_to_fine_loss(*pair, views, config.window or 0.125, config.cycle_weight, config.farthest)
        return line_to_window_loss(*seen.descriptors.chunk(2), stride, views, config.window or 0.1,
                                   config.line_samples, config.farthest)

    def _detection_losses(self, seen: Seen, stride: int, views: EpipolarViews) -> dict[str, Tensor]:
        config = self.config
        origin = tuple(torch.randint(CELL, (2,)).tolist()) if self.kind.shift else (0, 0)
        policy = seen.policy(origin)
        actions = draw_actions(policy.detach())
        drawn = [drawn_points(*part, CELL, origin)
                 for part in zip(policy.chunk(2), actions.chunk(2), (views.mask0, views.mask1))]
        reward = Reward(config.reward, config.wrong, config.tolerance)
        return policy_gradient_loss(*seen.descriptors.chunk(2), stride, *drawn, views, reward, config.penalty,
                                    config.normalise)

    def _load_backbone(self, network: nn.Module, context: Context) -> None:
        """ImageNet's weights; raises InputError where the file is not torchvision's ResNet-50."""
        if self.config.backbone_weights:
            state = read_weights(Path(self.config.backbone_weights))
            backbone = network.description.backbone
            backbone.load_state_dict(backbone.from_published(state if isinstance(state, Mapping) else {}))

    def _sift_points(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return point_inputs(find_detector("pos_feat", self.points, 1000).extract(image), self.points)


def views_of(batch: PosedBatch) -> EpipolarViews:
    """What the poses of a batch say."""
    fundamental = fundamental_matrix(batch.intrinsics0, batch.intrinsics1, batch.view1_from_view0)
    return EpipolarViews(fundamental, batch.mask0, batch.mask1)


def _load_described(network: nn.Module, context: Context) -> None:
    network.load_state_dict(network.state_dict() | context.trained("describe").state_dict())


def _build_posfeat(coarse: bool, stage: str) -> nn.Module:
    return PosFeatNet(coarse, detects=stage != "describe", frozen=stage == "detect")


def _build_compact(coarse: bool, stage: str) -> nn.Module:
    if stage == "detect":
        return DetectingCompact()
    network = CompactNet()
    if stage == "describe":
        for part in detecting_parts(network):
            part.requires_grad_(False)
    return network


def _see_posfeat(maps: PosFeatMaps) -> Seen:
    fine, coarse, _ = maps.levels
    levels = None if coarse is None else Levels(fine, coarse, PosFeatNet.stride, PosFeatNet.size_multiple)
    return Seen(lambda _: accepting_policy(maps.scores, CELL), maps.descriptors, levels)


def _see_compact(maps: tuple[Tensor, Tensor, Tensor]) -> Seen:
    logits, descriptors, reliability = maps

    def policy(origin: tuple[int, int]) -> Tensor:
        trust = F.interpolate(reliability, scale_factor=CompactNet.stride, mode="bilinear", align_corners=False)
        scores = F.instance_norm(logits + 2 * F.logsigmoid(trust))  # as posfeat's last layer does
        cells = to_cells(shift_grid(scores, origin, CELL), CELL)
        return cells.log_softmax(1) + F.logsigmoid(F.softplus(cells))

    return Seen(policy, descriptors, None)


def _resolved_model(config: PosFeatConfig) -> Model:
    if 5 <= config.model <= 8:
        raise InputError(f"model={config.model}: models 5 to 8 are keypoints of one trained model with descriptors of "
                         "another: train and export both of 1 to 4, then use --features ONE.onnx:detector=OTHER.onnx")
    if config.model not in MODELS:
        raise unknown_name("model of pos_feat", config.model, MODELS)
    check_names(config, {name: ("auto", *choices) for name, choices in SWITCHES.items()}, "pos_feat")
    own = {name: getattr(config, name) for name in SWITCHES if getattr(config, name) != "auto"}
    return MODELS[config.model]._replace(**own)


def _check_settings(config: PosFeatConfig, model: Model) -> None:
    check_names(config, {"network": KINDS, "pairs": CHOICES, "style": ("auto", *STYLES)}, "pos_feat")
    if model.training == "joint" and model.detector == "sift":
        raise InputError("training=joint with detector=sift: there is no detector to train with the descriptors; leave "
                         "one of the two out")
    if config.network == "compact" and (model.description == "coarse_to_fine" or config.backbone_weights):
        raise InputError("description=coarse_to_fine and backbone_weights apply to network=posfeat only: compact has "
                         "no second level and no ResNet")
    network = CompactNet if config.network == "compact" else PosFeatNet
    check_sides(config, ("height", "width"), network.size_multiple)
    check_closest(config)
    check_least(config, {"line_samples": 2, "penalty": 0, "cycle_weight": 0, "window": 0})
    for name in ("farthest", "tolerance", "largest_rotation"):
        if getattr(config, name) <= 0:
            raise InputError(f"{name}={getattr(config, name):g}: expected more than 0")


KINDS = {
    "posfeat": Kind(
        _build_posfeat, _see_posfeat, AtCorners, DeployedPosFeat, "rgb", "caps", (480, 640), (240, 320), 1.0,
        shift=False,
        # Joint training's numbers are not stated: those of describing.
        training={"describe": PAPER_DESCRIBE, "detect": PAPER_DETECT, "joint": PAPER_DESCRIBE},
        # On HPatches; there images are cut to multiples of 16, where our runtime pads them.
        decoding={"nms_radius": 1, "border": 1, "refine_radius": 1, "threshold": 0.9},
    ),
    "compact": Kind(
        _build_compact, _see_compact, DeployedCompact, DeployedCompact, "gray", "camera", (256, 320), (256, 320), 2.0,
        shift=True, training=dict.fromkeys(("describe", "detect", "joint"), COMPACT_TRAINING),
        decoding={"nms_radius": 1, "border": 4, "refine_radius": 2, "threshold": 0.0},
    ),
}
