"""KP2D: keypoints, scores and descriptors learned from pairs of views of one photograph, without labels.

"Neural outlier rejection for self-supervised keypoint learning", Tang et al., ICLR 2020; IO-Net is not part of
this file yet.  Two networks and two objectives:

- ``network=keypointnet`` is the paper's, with ``objective=paper``: every cell of 8×8 pixels has one point, a score
  and a descriptor; points must land on points, descriptors must find each other, scores must tell which do.
- ``network=compact`` is ours for small machines, with ``objective=dual_softmax`` by default: its scores are made
  at full resolution, where the paper's losses, which see one point a cell, teach it little (models/kp2d_compact.md
  has the figures).  Points are drawn where two views can agree, descriptors compete by dual softmax, and a
  reliability learns which of them win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.pairs import PairBatch, PairConfig
from kp_training.geometry.sampling import inside, sample, to_cells, warp_points
from kp_training.losses.detection import (
    agreement_loss,
    corner_loss,
    draw_points,
    location_loss,
    repeatability_loss,
    shift_grid,
    warp_logits,
)
from kp_training.losses.dual_softmax import dual_softmax_loss, mutual_matches, reliability_loss, similarities
from kp_training.losses.keypointnet import paper_losses
from kp_training.methods.base import Decoding, gumbel_like, images_to_float
from kp_training.networks import NETWORKS
from kp_training.networks.compact import CompactNet
from kp_training.networks.keypointnet import CellMaps, KeyPointNet

CELL = 8
CROSS_RATIO = 2.0
PENALTY = 0.15


@dataclass(frozen=True)
class Kp2dConfig:
    """Settings of KP2D; ``auto`` follows the network.

    objective: ``paper`` or ``dual_softmax`` (compact only).  geometry, style: see PairConfig; ``style=paper_code``
    leaves the colour jitter out, as the paper's code does by mistake.  height, width: of the views, 0 = auto.
    turn_share, zoom, stretch, hardness: of wide pairs, see WideHomographies.  dropout: KeyPointNet's.
    temperature: of the dual softmax.  safe_radius: pixels within which another point is no mistake.
    …_weight: of the parts of the dual softmax objective; the descriptor's is 1.  With less weight on corners than
    on agreement, the detector drifts to edges, which agree as well but say less about where they are.
    """

    network: str = "keypointnet"
    objective: str = "auto"
    geometry: str = "auto"
    style: str = "auto"
    height: int = 0
    width: int = 0
    turn_share: float = 0.5
    zoom: float = 1.0
    stretch: float = 1.3
    hardness: float = 1.5
    dropout: float = 0.2
    temperature: float = 0.07
    safe_radius: float = 4.0
    corner_weight: float = 6.0
    agreement_weight: float = 0.2
    repeatability_weight: float = 2.0
    location_weight: float = 1.0
    reliability_weight: float = 1.0


class Kp2d:
    """See the module; raises InputError for a network, objective, geometry or style that does not exist."""

    Config = Kp2dConfig

    def __init__(self, config: Kp2dConfig) -> None:
        if config.network not in NETWORKS:
            raise unknown_name("network", config.network, NETWORKS)
        compact = config.network == "compact"
        objective = {"auto": "dual_softmax" if compact else "paper"}.get(config.objective, config.objective)
        if objective not in OBJECTIVES:
            raise unknown_name("objective", objective, OBJECTIVES)
        if objective == "dual_softmax" and not compact:
            raise InputError("objective=dual_softmax needs scores at full resolution; "
                             "use network=compact or objective=paper")
        _check_ranges(config)
        self.config, self.objective = config, objective
        self.variant = f"v2-{config.network}-{objective}"

    def training_defaults(self) -> dict[str, Any]:
        """Settings of the training loop that differ from its defaults."""
        if self.config.network == "compact":
            return {"batch_size": 16, "learning_rate": 2e-3, "ema": 0.995}
        return {"batch_size": 8, "learning_rate": 1e-3, "schedule": "halve", "weight_decay": 0.0, "ema": 0.0,
                "warmup": 0, "clip": 0.0}

    def network(self) -> nn.Module:
        if self.config.network == "compact":
            return CompactNet()
        return KeyPointNet(self.config.dropout)

    def pairs(self) -> PairConfig:
        config, paper = self.config, self.objective == "paper"
        height, width = (240, 320) if self.config.network == "keypointnet" else (192, 192)
        return PairConfig(
            geometry={"auto": "paper" if paper else "wide"}.get(config.geometry, config.geometry),
            style={"auto": "paper" if paper else "camera"}.get(config.style, config.style),
            color=NETWORKS[config.network].color,
            height=config.height or height,
            width=config.width or width,
            turn_share=config.turn_share,
            zoom=config.zoom,
            stretch=config.stretch,
            hardness=config.hardness,
            corners=not paper,
        )

    def losses(self, network: Callable, batch: PairBatch) -> dict[str, Tensor]:
        return OBJECTIVES[self.objective](network, batch, self.config)

    def deployed(self, network: nn.Module) -> nn.Module:
        return _DeployedCompact(network) if self.config.network == "compact" else network

    def decoding(self) -> Decoding:
        if self.config.network == "compact":
            return Decoding("full", {"nms_radius": 1, "border": 4, "refine_radius": 2, "threshold": 0.0},
                            ("scores", "descriptors"))
        parameters = {"cell": CELL, "cross_ratio": CROSS_RATIO, "align_corners": True, "threshold": 0.0,
                      "nms_radius": 0}
        return Decoding("cells", parameters, ("scores", "offsets", "descriptors"))


def _check_ranges(config: Kp2dConfig) -> None:
    multiple = NETWORKS[config.network].size_multiple
    for name in ("height", "width"):
        side = getattr(config, name)
        if side < 0 or side % multiple or 0 < side < 32:
            raise InputError(f"{name}={side}: expected a multiple of {multiple}, of at least 32, or 0 for auto")
    if not 0 <= config.turn_share <= 1 or not 0 <= config.dropout < 1:
        raise InputError(f"turn_share={config.turn_share:g}, dropout={config.dropout:g}: expected shares from 0 to 1")
    if min(config.hardness, config.temperature) <= 0:
        raise InputError(f"hardness={config.hardness:g}, temperature={config.temperature:g}: expected more than 0")


class _DeployedCompact(nn.Module):
    """The two maps that the runtime decodes."""

    def __init__(self, network: CompactNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, descriptors, reliability = self.network(image)
        return self.network.scores(logits, reliability), descriptors


def _paper_objective(network: Callable, batch: PairBatch, config: Kp2dConfig) -> dict[str, Tensor]:
    """The paper's losses; view 0 is its source, view 1 its target."""
    images = images_to_float(batch)
    outputs = network(torch.cat(images))
    maps = outputs if isinstance(outputs, CellMaps) else _cells_of_full_resolution(*outputs)
    source, target = (CellMaps(*views) for views in zip(*(output.chunk(2) for output in maps)))
    return paper_losses(source, target, batch.homography, CELL, CROSS_RATIO)


def _cells_of_full_resolution(logits: Tensor, descriptors: Tensor, reliability: Tensor) -> CellMaps:
    """Compact's maps as the paper's losses want them: a cell's point is the mean of its softmax."""
    cells = to_cells(logits, CELL)
    steps = (torch.arange(CELL, device=logits.device) - (CELL - 1) / 2) / ((CELL - 1) / 2 * CROSS_RATIO)
    grid = cells.softmax(1).unflatten(1, (CELL, CELL))
    offsets = torch.stack([torch.einsum("byxhw,x->bhw", grid, steps), torch.einsum("byxhw,y->bhw", grid, steps)], 1)
    scores = torch.sigmoid(cells.logsumexp(1, keepdim=True)) * torch.sigmoid(reliability)
    return CellMaps(scores, offsets, descriptors)


def _dual_softmax_objective(network: Callable, batch: PairBatch, config: Kp2dConfig) -> dict[str, Tensor]:
    """Detection where two views agree, description by dual softmax, reliability by who wins (METHODS.md, 10)."""
    logits, descriptors, reliability = network(torch.cat(images_to_float(batch)))
    shift = tuple(torch.randint(CELL, (2,)).tolist())
    detection = _detection_losses(logits, batch, shift)
    description = _description_losses(logits.detach(), descriptors, reliability, batch, shift, config)
    parts = detection | description
    weights = {"corner": config.corner_weight, "agreement": config.agreement_weight, "location": config.location_weight,
               "repeatability": config.repeatability_weight, "reliability": config.reliability_weight}
    total = parts["descriptor"] + sum(weight * parts[name] for name, weight in weights.items())
    return {"loss": total, **parts}


def _detection_losses(logits: Tensor, batch: PairBatch, shift: tuple[int, ...]) -> dict[str, Tensor]:
    """Both views find the corners; view 0's cells agree with view 1 warped into it, and so do the refined points."""
    labels = shift_grid(torch.cat([batch.labels0, batch.labels1])[:, None], shift, CELL)
    mask = shift_grid(torch.cat([batch.mask0, batch.mask1])[:, None], shift, CELL)
    cells = shift_grid(logits, shift, CELL)
    corner = corner_loss(cells, labels, mask, CELL)

    logits0, logits1 = logits.chunk(2)
    warped, seen = (shift_grid(maps, shift, CELL) for maps in warp_logits(logits1, batch.homography, batch.mask1))
    cells0, mask0 = cells.chunk(2)[0], mask.chunk(2)[0]
    whole = to_cells((seen & mask0).float(), CELL).amin(1)
    # Where there is nothing to find, agreeing on it should not shape the detector.
    confident = torch.sigmoid(to_cells(cells0.detach(), CELL).logsumexp(1))
    agreement = agreement_loss(cells0, warped, whole * confident, CELL)
    best = draw_points(cells0.detach(), CELL) + torch.tensor(shift, device=logits.device)
    location = location_loss(torch.sigmoid(logits0), torch.sigmoid(logits1), best, batch.homography,
                             (whole * confident).flatten(1))
    repeated = repeatability_loss(cells0, warped, whole, PENALTY, CELL)
    return {"corner": corner, "agreement": agreement, "repeatability": repeated, "location": location}


def _description_losses(
    logits: Tensor, descriptors: Tensor, reliability: Tensor, batch: PairBatch, shift: tuple[int, ...],
    config: Kp2dConfig,
) -> dict[str, Tensor]:
    """A point of each of view 0's cells, drawn by the detector and off the pixel grid, finds itself in view 1."""
    cells0 = shift_grid(logits, shift, CELL).chunk(2)[0]
    points0 = draw_points(cells0, CELL, gumbel_like(cells0)) + torch.tensor(shift, device=logits.device)
    points0 = points0 + torch.rand_like(points0) - 0.5
    points1 = warp_points(batch.homography, points0)
    mask0, mask1 = (sample(mask[:, None].float(), points)[..., 0] > 0.99
                    for mask, points in ((batch.mask0, points0), (batch.mask1, points1)))
    valid = inside(points1, *logits.shape[-2:], border=2) & mask0 & mask1

    (map0, map1), (trust0, trust1) = descriptors.chunk(2), reliability.chunk(2)
    described = [sample(maps, points, CompactNet.stride) for maps, points in ((map0, points0), (map1, points1))]
    matching = similarities(*described, points1, valid, config.temperature, config.safe_radius)
    matched = mutual_matches(matching.detach())
    trusts = [reliability_loss(sample(maps, points, CompactNet.stride)[..., 0], matched, valid)
              for maps, points in ((trust0, points0), (trust1, points1))]
    return {"descriptor": dual_softmax_loss(matching, valid), "reliability": sum(trusts) / 2,
            "matched": (matched & valid).sum() / valid.sum().clamp_min(1)}


OBJECTIVES = {"paper": _paper_objective, "dual_softmax": _dual_softmax_objective}
