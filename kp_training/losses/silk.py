"""SiLK's losses over all pixels of two views: descriptors find each other, the detector learns which of them do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.sampling import pixel_grid
from kp_training.geometry.warps import Warp
from kp_training.losses.blockwise import BLOCK, logsumexp_and_best

Pairs = tuple[Tensor, Tensor]


def cell_positions(height: int, width: int, margin: int, device: torch.device | str = "cpu") -> Tensor:
    """(h·w)×2 image positions of the cells of an h×w map, row by row; the map lacks `margin` pixels at each side.

    SiLK's "+9"; with pixel centres at integers there is no half pixel to add.
    """
    return pixel_grid(height, width, device).flatten(0, 1) + margin


def nearest_cells(points: Tensor, height: int, width: int, margin: int) -> Tensor:
    """…×N int64: index of the cell that holds each of …×N×2 image `points`, −1 for none; undoes `cell_positions`."""
    x, y = (points - margin + 0.5).floor().unbind(-1)
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.where(within, y * width + x, -1).long()


def mutual_pairs(forward: Tensor, backward: Tensor) -> Pairs:
    """Indices of the cells of both views that name each other: M int64 twice, each cell at most once.

    forward: N, the cell of view 1 that each cell of view 0 falls into, −1 for none.  backward: the other way.
    """
    returned = torch.where(forward >= 0, backward[forward.clamp_min(0)], -1)
    first = torch.nonzero(returned == torch.arange(len(forward), device=forward.device))[:, 0]
    return first, forward[first]


def warp_pairs(warp: Warp, maps: Tensor, margin: int) -> list[Pairs]:
    """`mutual_pairs` of each of the B pairs of views, of cells whose place in the other view is known both ways.

    A hidden cell is in no pair, for what hides it does not come back to it.
    warp: from view 0 to view 1.  maps: B×C×h×w of either view; see `cell_positions`.
    """
    height, width = maps.shape[-2:]
    positions = cell_positions(height, width, margin, maps.device).expand(len(maps), -1, -1)
    ways = []
    for way in (warp, warp.inverse):
        warped = way(positions)
        ways.append(torch.where(warped.known, nearest_cells(warped.points, height, width, margin), -1))
    return [mutual_pairs(*both) for both in zip(*ways)]


def draw_pairs(pairs: Pairs, count: int) -> Pairs:
    """`count` of the pairs at random; all of them where there are no more, and for 0."""
    first, second = pairs
    if not count or count >= len(first):
        return pairs
    drawn = torch.randperm(len(first), device=first.device)[:count]
    return first[drawn], second[drawn]


def silk_losses(
    logits: tuple[Tensor, Tensor], descriptors: tuple[Tensor, Tensor], pairs: Sequence[Pairs], temperature: float,
    block: int = BLOCK,
) -> dict[str, Tensor]:
    """SiLK's ``loss`` and its parts ``descriptor`` and ``detector`` (weights 1).

    logits: B×1×h×w of each view.  descriptors: B×D×h×w of each view.  pairs: of each of the B, see `mutual_pairs`.
    descriptor: cross-entropy of each cell of a pair among all cells of the other view, the mean over pairs, summed
    over both directions.  detector: binary cross-entropy, at the cells of pairs only, with whether the two are each
    other's best match.  Expected of it: as long as few pairs match, all logits sink; they recover as more do.
    Watched: ``matched``, the share of pairs that are each other's best match; ``precision``, that of the cells of
    pairs which the detector calls keypoints.
    """
    descriptor, detector, matched, called, right = logits[0].new_zeros(5).unbind()
    for number, (first, second) in enumerate(pairs):
        maps = [views[number].flatten(1).T.contiguous() for views in descriptors]
        ours, theirs = maps[0][first], maps[1][second]
        total0, best0 = logsumexp_and_best(ours, maps[1], 1 / temperature, block)
        total1, best1 = logsumexp_and_best(theirs, maps[0], 1 / temperature, block)
        own = (ours * theirs).sum(1) / temperature
        descriptor = descriptor + (total0 + total1 - 2 * own).sum()
        mutual = ((best0 == second) & (best1 == first)).float()
        matched = matched + mutual.sum()
        seen = torch.cat([logits[0][number].flatten()[first], logits[1][number].flatten()[second]])
        detector = detector + F.binary_cross_entropy_with_logits(seen, mutual.repeat(2), reduction="sum")
        called, right = called + (seen > 0).sum(), right + mutual.repeat(2)[seen > 0].sum()
    count = max(sum(len(first) for first, _ in pairs), 1)
    descriptor, detector, matched = descriptor / count, detector / (2 * count), matched / count
    return {"loss": descriptor + detector, "descriptor": descriptor, "detector": detector, "matched": matched,
            "precision": right / called.clamp_min(1)}
