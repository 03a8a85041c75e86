"""Our own objective for the network ``compact``, whose scores are made at full resolution (METHODS.md section 10).

Points are drawn where two views can agree, descriptors compete by dual softmax, and a reliability learns which of
them win.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kp_training.data.pairs import PairBatch
from kp_training.data.posed_pairs import PosedBatch
from kp_training.geometry.sampling import inside, sample, to_cells
from kp_training.geometry.warps import Warp
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
from kp_training.methods.base import Run, gumbel_like, images_to_float
from kp_training.networks.compact import CompactNet

CELL = 8


@dataclass(frozen=True)
class DualSoftmaxConfig:
    """Settings of the dual softmax objective.

    temperature: of the dual softmax.  safe_radius: pixels within which another point is no mistake.
    …_weight: of the parts of the objective; the descriptor's is 1.  With less weight on corners than on agreement, the
    detector drifts to edges, which agree as well but say less about where they are.
    penalty: for drawing a point in both views and failing, where succeeding gains 1.  matched_only: it is a success
    only where the descriptors find each other too, as SiLK's detector learns it.
    """

    temperature: float = 0.07
    safe_radius: float = 4.0
    corner_weight: float = 6.0
    agreement_weight: float = 0.2
    repeatability_weight: float = 2.0
    location_weight: float = 1.0
    reliability_weight: float = 1.0
    penalty: float = 0.15
    matched_only: bool = False


def dual_softmax_objective(
    run: Run, network: nn.Module, batch: PairBatch | PosedBatch, config: DualSoftmaxConfig
) -> dict[str, Tensor]:
    """Detection where two views agree, description by dual softmax, reliability by who wins.

    Only points that both views see take part.
    """
    logits, descriptors, reliability = run(network, torch.cat(images_to_float(batch)))
    shift = tuple(torch.randint(CELL, (2,)).tolist())
    warp = batch.warp()
    description, matched = _description_losses(logits.detach(), descriptors, reliability, warp, shift, config)
    detection = _detection_losses(logits, batch, warp, shift, config.penalty, matched if config.matched_only else None)
    parts = detection | description
    weights = {"corner": config.corner_weight, "agreement": config.agreement_weight, "location": config.location_weight,
               "repeatability": config.repeatability_weight, "reliability": config.reliability_weight}
    total = parts["descriptor"] + sum(weight * parts[name] for name, weight in weights.items())
    return {"loss": total, **parts}


def _detection_losses(
    logits: Tensor, batch: PairBatch | PosedBatch, warp: Warp, shift: tuple[int, ...], penalty: float,
    matched: Tensor | None,
) -> dict[str, Tensor]:
    """Both views find the corners; view 0's cells agree with view 1 warped into it, and so do the refined points.

    matched: B×N bool, the cells of view 0, row by row, where agreeing counts; None = everywhere.
    """
    labels = shift_grid(torch.cat([batch.labels0, batch.labels1])[:, None], shift, CELL)
    mask = shift_grid(torch.cat([batch.mask0, batch.mask1])[:, None], shift, CELL)
    cells = shift_grid(logits, shift, CELL)
    corner = corner_loss(cells, labels, mask, CELL)

    logits0, logits1 = logits.chunk(2)
    warped, seen = (shift_grid(maps, shift, CELL) for maps in warp_logits(logits1, warp))
    cells0 = cells.chunk(2)[0]
    whole = to_cells(seen.float(), CELL).amin(1)
    # Where there is nothing to find, agreeing on it should not shape the detector.
    confident = torch.sigmoid(to_cells(cells0.detach(), CELL).logsumexp(1))
    agreement = agreement_loss(cells0, warped, whole * confident, CELL)
    best = draw_points(cells0.detach(), CELL) + torch.tensor(shift, device=logits.device)
    location = location_loss(torch.sigmoid(logits0), torch.sigmoid(logits1), best, warp,
                             (whole * confident).flatten(1))
    counted = None if matched is None else matched.reshape(whole.shape)
    repeated = repeatability_loss(cells0, warped, whole, penalty, CELL, counted)
    return {"corner": corner, "agreement": agreement, "repeatability": repeated, "location": location}


def _description_losses(
    logits: Tensor, descriptors: Tensor, reliability: Tensor, warp: Warp, shift: tuple[int, ...],
    config: DualSoftmaxConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    """A point of each of view 0's cells, drawn by the detector and off the pixel grid, finds itself in view 1.

    Also gives which of the cells did: B×N bool, row by row.
    """
    cells0 = shift_grid(logits, shift, CELL).chunk(2)[0]
    points0 = draw_points(cells0, CELL, gumbel_like(cells0)) + torch.tensor(shift, device=logits.device)
    points0 = points0 + torch.rand_like(points0) - 0.5
    points1, _, visible = warp(points0)
    valid = visible & inside(points1, *logits.shape[-2:], border=2)

    (map0, map1), (trust0, trust1) = descriptors.chunk(2), reliability.chunk(2)
    described = [sample(maps, points, CompactNet.stride) for maps, points in ((map0, points0), (map1, points1))]
    matching = similarities(*described, points1, valid, config.temperature, config.safe_radius)
    matched = mutual_matches(matching.detach()) & valid
    trusts = [reliability_loss(sample(maps, points, CompactNet.stride)[..., 0], matched, valid)
              for maps, points in ((trust0, points0), (trust1, points1))]
    parts = {"descriptor": dual_softmax_loss(matching, valid), "reliability": sum(trusts) / 2,
             "matched": matched.sum() / valid.sum().clamp_min(1)}
    return parts, matched
