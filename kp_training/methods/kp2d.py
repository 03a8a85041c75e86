"""KP2D: keypoints, scores and descriptors learned from pairs of views of one photograph, without labels.

"Neural outlier rejection for self-supervised keypoint learning", Tang et al., ICLR 2020: every cell of 8×8 pixels has
one point, a score and a descriptor; points must land on points, descriptors must find each other, scores must tell
which do, and IO-Net must be able to tell right matches from wrong ones.

The paper's networks are ``keypointnet`` and ``keypoint_resnet``.  ``compact`` is ours for small machines, with an
objective of our own by default: its scores are made at full resolution, where the paper's losses, which see one point
a cell, teach it little (models/kp2d_compact.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.corners import CornerPoints
from kp_training.data.pairs import HomographyPairs, PairBatch, PairConfig
from kp_training.geometry.sampling import to_cells
from kp_training.losses.keypointnet import CODE, PAPER, LossRules, paper_losses
from kp_training.losses.outliers import PICKS, match_cells, outlier_loss
from kp_training.methods.base import Context, Decoding, Run, Stage, images_to_float
from kp_training.methods.compact_objective import CELL, DualSoftmaxConfig, dual_softmax_objective
from kp_training.networks.compact import CompactNet, DeployedCompact
from kp_training.networks.ionet import WithOutliers
from kp_training.networks.keypoint_resnet import KeypointResnet
from kp_training.networks.keypointnet import CellMaps, KeyPointNet
from kp_training.settings import check_sides
from kp_training.train_config import PLAIN

PAPER_TRAINING = {"batch_size": 8, "learning_rate": 1e-3} | PLAIN | {"schedule": "drop"}


@dataclass(frozen=True)
class Version:
    """A row of the paper's Table 1, or what was made of one: the settings of the same names, resolved."""

    cross_ratio: float
    upsample: str
    outliers: str
    descriptor_loss: str


VERSIONS = {
    "v0": Version(1.0, "none", "none", "triplet"),
    "v1": Version(2.0, "none", "none", "triplet"),
    "v2": Version(2.0, "shuffle", "none", "triplet"),
    "v3": Version(2.0, "shuffle", "lowest", "none"),
    "v4": Version(2.0, "shuffle", "lowest", "triplet"),
}


@dataclass(frozen=True)
class Parity:
    """What the code or the paper says where they differ; `losses`: see LossRules."""

    dropout: float
    style: str
    geometry: str
    losses: LossRules


# The code draws a colour jitter and drops it by mistake; we apply it unless style=kp2d_code.
PARITIES = {"code": Parity(0.2, "kp2d", "kp2d", CODE), "paper": Parity(0.0, "kp2d_paper", "kp2d_paper", PAPER)}


@dataclass(frozen=True)
class NetworkChoice:
    """build: (dropout, upsample) → network.  height, width: of the training views.  multiple: that they must have."""

    build: Callable[[float, bool], nn.Module]
    height: int
    width: int
    multiple: int
    color: str = "rgb"


NETWORKS = {
    "keypointnet": NetworkChoice(KeyPointNet, 240, 320, multiple=8),
    "keypoint_resnet": NetworkChoice(lambda dropout, _: KeypointResnet(dropout), 256, 320, multiple=32),
    "compact": NetworkChoice(lambda *_: CompactNet(), 192, 192, multiple=32, color="gray"),
}


@dataclass(frozen=True)
class Kp2dConfig(DualSoftmaxConfig):
    """Settings of KP2D; ``auto``, 0 and a dropout of −1 follow the version, the parity or the network.

    objective: ``paper``, or ``dual_softmax`` (compact only, and its default), to which the next six do not apply.
    version: ``v0`` to ``v4`` (default) of the paper's Table 1, which stand for
    cross_ratio: reach of a point from its cell's centre in half cells, 1 (v0) or 2.
    upsample: ``shuffle`` (descriptors at 1/4) or ``none`` (1/8, as v0 and v1); keypointnet only.
    outliers: IO-Net on the 300 points of ``lowest`` (v3, v4), ``highest`` or ``random`` score, or ``none``.
    descriptor_loss: ``triplet``, or ``none`` (v3).
    parity: ``code`` or ``paper``, where they differ:
        dropout: 0.2 | 0;
        style: ``kp2d`` (hue ±0.05, noise σ 0.05) | ``kp2d_paper`` (±0.2, 0.02); ``kp2d_code`` is without the colour
        jitter, which the code drops by mistake;
        geometry: ``kp2d`` (homographies scaled by ±0.1) | ``kp2d_paper`` (±0.2);
        losses: see LossRules.
    geometry, style: see PairConfig.  height, width: of the views.  dropout: of the paper's networks.
    turn_share, zoom, stretch, hardness: of wide pairs, see WideHomographies.

    The paper's code trains on 8 GPUs with 8 pairs each, 50 epochs of 118,000 photographs: ``accumulate=8 steps=92000``
    on one GPU.
    """

    network: str = "keypointnet"
    objective: str = "auto"
    version: str = "auto"
    cross_ratio: float = 0.0
    upsample: str = "auto"
    outliers: str = "auto"
    descriptor_loss: str = "auto"
    parity: str = "code"
    geometry: str = "auto"
    style: str = "auto"
    height: int = 0
    width: int = 0
    turn_share: float = 0.5
    zoom: float = 1.0
    stretch: float = 1.3
    hardness: float = 1.5
    dropout: float = -1.0


class Kp2d:
    """See the module; raises InputError for names that do not exist and for settings that do not go together."""

    Config = Kp2dConfig

    def __init__(self, config: Kp2dConfig) -> None:
        _check_name("network", config.network, NETWORKS)
        compact = config.network == "compact"
        objective = _resolved(config.objective, "dual_softmax" if compact else "paper")
        _check_name("objective", objective, OBJECTIVES)
        if objective == "dual_softmax" and not compact:
            raise InputError("objective=dual_softmax needs scores at full resolution; "
                             "use network=compact or objective=paper")
        _check_ranges(config)
        self.config, self.objective = config, objective
        self.version, self.parity = _version(config, objective), PARITIES[config.parity]
        self.variant = _variant(config, objective)

    def stages(self) -> tuple[Stage, ...]:
        compact = self.config.network == "compact"
        training = {"batch_size": 16, "learning_rate": 2e-3} if compact else PAPER_TRAINING
        return (Stage("train", self._network, self._pairs, self._losses, self._deployed, training),)

    def _network(self) -> nn.Module:
        dropout = self.parity.dropout if self.config.dropout < 0 else self.config.dropout
        network = NETWORKS[self.config.network].build(dropout, self.version.upsample == "shuffle")
        return WithOutliers(network) if self._with_outliers else network

    @property
    def _with_outliers(self) -> bool:
        return self.objective == "paper" and self.version.outliers != "none"

    def _pairs(self, context: Context) -> HomographyPairs:
        points = None if self.objective == "paper" else CornerPoints(context.images, context.cache)
        return HomographyPairs(context.images, self._pair_config(), context.seed, points, context.on_device)

    def _pair_config(self) -> PairConfig:
        config, network, paper = self.config, NETWORKS[self.config.network], self.objective == "paper"
        return PairConfig(
            geometry=_resolved(config.geometry, self.parity.geometry if paper else "wide"),
            style=_resolved(config.style, self.parity.style if paper else "camera"),
            color=network.color,
            height=config.height or network.height,
            width=config.width or network.width,
            turn_share=config.turn_share,
            zoom=config.zoom,
            stretch=config.stretch,
            hardness=config.hardness,
        )

    def _losses(self, run: Run, network: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        return OBJECTIVES[self.objective](self, run, network, batch)

    def _deployed(self, network: nn.Module) -> nn.Module:
        keypoints = network.keypoints if self._with_outliers else network
        return DeployedCompact(keypoints) if self.config.network == "compact" else keypoints

    def decoding(self) -> Decoding:
        if self.config.network == "compact":
            return Decoding("full", {"nms_radius": 1, "border": 4, "refine_radius": 2, "threshold": 0.0},
                            ("scores", "descriptors"))
        parameters = {"cell": CELL, "cross_ratio": self.version.cross_ratio, "align_corners": True, "threshold": 0.0,
                      "nms_radius": 0}
        return Decoding("cells", parameters, ("scores", "offsets", "descriptors"))


def _resolved(value: str, default: str) -> str:
    return default if value == "auto" else value


def _check_name(kind: str, name: str, known: object) -> None:
    if name not in known:
        raise unknown_name(kind, name, known)


SWITCHES = {
    "upsample": ("none", "shuffle"), "outliers": ("none", *PICKS), "descriptor_loss": ("none", "triplet"),
}


def _overrides(config: Kp2dConfig) -> dict[str, str | float]:
    """The switches of the version that are set by themselves."""
    overrides: dict[str, str | float] = {name: getattr(config, name) for name in SWITCHES
                                         if getattr(config, name) != "auto"}
    return overrides | ({"cross_ratio": config.cross_ratio} if config.cross_ratio else {})


def _version(config: Kp2dConfig, objective: str) -> Version:
    """The version with the switches that are set by themselves; raises InputError where one does not apply."""
    preset, overrides = _resolved(config.version, "v4"), _overrides(config)
    _check_name("version", preset, VERSIONS)
    for name, choices in SWITCHES.items():
        _check_name(name, getattr(config, name), ("auto", *choices))
    if objective == "dual_softmax" and (overrides or config.version != "auto" or config.parity != "code"):
        raise InputError(f"version, parity, {', '.join(SWITCHES)} and cross_ratio do not apply to "
                         "objective=dual_softmax, our own; leave them out or use objective=paper")
    if "upsample" in overrides and config.network != "keypointnet":
        raise InputError(f"upsample={config.upsample} applies to network=keypointnet only, not to {config.network}")
    if "cross_ratio" in overrides and config.network == "compact":
        raise InputError(f"cross_ratio={config.cross_ratio:g} does not apply to network=compact: its points are pixels")
    version = replace(VERSIONS[preset], **overrides)
    if version.descriptor_loss == version.outliers == "none":
        raise InputError("descriptor_loss=none and outliers=none leave descriptors untrained; use one of the two")
    return version


def _variant(config: Kp2dConfig, objective: str) -> str:
    """Version, network and objective, and the switches that were set by themselves."""
    version = [] if objective == "dual_softmax" else [_resolved(config.version, "v4")]
    switches = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in _overrides(config).items()]
    parity = [] if config.parity == "code" else [f"parity={config.parity}"]
    return "-".join([*version, config.network, objective, *switches, *parity])


def _check_ranges(config: Kp2dConfig) -> None:
    _check_name("parity", config.parity, PARITIES)
    check_sides(config, ("height", "width"), NETWORKS[config.network].multiple, 32)
    if not 0 <= config.turn_share <= 1 or not (0 <= config.dropout < 1 or config.dropout == -1):
        raise InputError(f"turn_share={config.turn_share:g}, dropout={config.dropout:g}: expected shares from 0 to 1")
    if min(config.hardness, config.temperature) <= 0:
        raise InputError(f"hardness={config.hardness:g}, temperature={config.temperature:g}: expected more than 0")
    if config.cross_ratio < 0:
        raise InputError(f"cross_ratio={config.cross_ratio:g}: expected more than 0, as 1 or 2, or 0 for auto")


def _paper_objective(method: Kp2d, run: Run, network: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
    """The paper's losses, weights 1; view 0 is its source, view 1 its target."""
    version, with_outliers = method.version, isinstance(network, WithOutliers)
    outputs = run(network.keypoints if with_outliers else network, torch.cat(images_to_float(batch)))
    maps = outputs if isinstance(outputs, CellMaps) else _cells_of_full_resolution(*outputs, version.cross_ratio)
    source, target = (CellMaps(*views) for views in zip(*(output.chunk(2) for output in maps)))
    losses = paper_losses(source, target, batch.homography, CELL, version.cross_ratio,
                          version.descriptor_loss == "triplet", method.parity.losses)
    if with_outliers:
        matches = match_cells(source, target, batch.homography, CELL, version.cross_ratio, version.outliers)
        outlier = outlier_loss(run(network.outliers, matches.features), matches.labels, method.parity.losses)
        inliers = (matches.labels > 0).float().mean()
        losses |= {"loss": losses["loss"] + outlier, "outlier": outlier, "inliers": inliers}
    return losses


def _cells_of_full_resolution(
    logits: Tensor, descriptors: Tensor, reliability: Tensor, cross_ratio: float
) -> CellMaps:
    """Compact's maps as the paper's losses want them: a cell's point is the mean of its softmax."""
    cells = to_cells(logits, CELL)
    steps = (torch.arange(CELL, device=logits.device) - (CELL - 1) / 2) / ((CELL - 1) / 2 * cross_ratio)
    grid = cells.softmax(1).unflatten(1, (CELL, CELL))
    offsets = torch.stack([torch.einsum("byxhw,x->bhw", grid, steps), torch.einsum("byxhw,y->bhw", grid, steps)], 1)
    scores = torch.sigmoid(cells.logsumexp(1, keepdim=True)) * torch.sigmoid(reliability)
    return CellMaps(scores, offsets, descriptors)


def _dual_softmax(method: Kp2d, run: Run, network: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
    return dual_softmax_objective(run, network, batch, method.config)


OBJECTIVES = {"paper": _paper_objective, "dual_softmax": _dual_softmax}
