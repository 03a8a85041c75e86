"""SuperPoint's losses: one of 65 for each cell, and descriptors of cells that do and do not correspond."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kp_training.geometry.sampling import inside, pixel_grid, sample, to_cells
from kp_training.geometry.warps import Warp, hidden
from kp_training.losses.dual_softmax import masked_mean

CELL = 8
NEAR = CELL - 0.5
"""Cells correspond when their centres, in pixels, are no farther apart (the code's; the paper prints 8)."""
KEPT = 2**24
"""Pairs of cells of a batch whose likeness is kept for the gradient; more are made again."""
LEAST_SQUARE = 1e-24
"""Of a length that is divided by."""


def detector_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of B×65×h×w `logits` with one labelled pixel of each cell, or its dustbin; mean over whole cells.

    labels: B×8h×8w, a point where it is not 0.  mask: B×8h×8w bool, True where the label is to be believed.
    """
    entropy = F.cross_entropy(logits, cell_classes(labels), reduction="none")
    return masked_mean(entropy.flatten(1), whole_cells(mask))


def cell_classes(labels: Tensor) -> Tensor:
    """B×h×w int64 classes of B×8h×8w `labels`: the pixel with the point, any one of several, or 64 for none."""
    points = to_cells((labels[:, None] > 0).float(), CELL)
    votes = torch.cat([2 * points, torch.ones_like(points[:, :1])], 1)
    return (votes + 0.1 * torch.rand_like(votes)).argmax(1)


def cell_centres(maps: Tensor) -> Tensor:
    """(h·w)×2 pixel positions of the centres of the cells of B×C×h×w `maps`, row by row.

    The code has 8i + 4, half a pixel off the middle of pixels 8i to 8i + 7.
    """
    return (pixel_grid(*maps.shape[-2:], maps.device) * CELL + (CELL - 1) / 2).flatten(0, 1)


def whole_cells(mask: Tensor) -> Tensor:
    """B×(h·w) bool: cells that a B×8h×8w bool `mask` covers wholly."""
    return (to_cells(mask[:, None].float(), CELL).amin(1) > 0).flatten(1)


@dataclass(frozen=True)
class DenseDescriptorLoss:
    """Every cell of view 0 with every cell of view 1 (the paper's eqs. 5 and 6, as rpautrat's code has them).

    positive: weight λ_d of pairs that correspond; weight: λ of the whole.  normalise: rectify the cosines and scale
    them to unit length over view 1's cells, then over view 0's, so that a cell's likeness is shared out among its
    rivals; without it, and with the paper's weights, others did not see it converge.
    near: cells correspond when their centres, in pixels, are no farther apart.

    A cell of view 0 whose centre leaves view 1 is a negative for all cells there.  One that is lost (no depth, or
    hidden in view 1) takes part in nothing.
    """

    positive: float = 0.05
    weight: float = 1e4
    normalise: bool = True
    positive_margin: float = 1.0
    negative_margin: float = 0.2
    near: float = NEAR

    def __call__(self, descriptors0: Tensor, descriptors1: Tensor, warp: Warp, mask0: Tensor, mask1: Tensor) -> Tensor:
        """Scalar.  descriptors: B×D×h×w.  warp: from view 0 to view 1.  masks: B×8h×8w bool.

        The code takes view 0 to be an unwarped image, valid everywhere; ours may show the photograph's end too.
        """
        centres = cell_centres(descriptors0)
        warped = warp(centres.expand(len(descriptors0), -1, -1))
        whole0, whole1 = whole_cells(mask0), whole_cells(mask1)
        lost = whole0 & (~warped.known | hidden(warped, mask1))
        counted = whole0 & ~lost
        first, second = (F.normalize(maps.flatten(2), dim=1).transpose(1, 2) for maps in (descriptors0, descriptors1))
        total = functools.partial(self._total, shape=descriptors1.shape[-2:])
        if len(first) * first.shape[1] * second.shape[1] > KEPT:
            # Again for the gradient: the 4800² pairs of cells of 480×640 take a gigabyte.
            total = functools.partial(checkpoint, total, use_reentrant=False)
        # One pair at a time: on a CPU, what fits its cache is quick.
        totals = [total(*pair) for pair in zip(first, second, warped.points, lost, counted, whole1)]
        number = (counted.sum(1) * whole1.sum(1)).sum()
        return self.weight * sum(totals) / number.clamp_min(1)

    def _total(
        self, first: Tensor, second: Tensor, points: Tensor, lost: Tensor, counted0: Tensor, counted1: Tensor,
        shape: tuple[int, int],
    ) -> Tensor:
        """Sum of the hinges of N cells of view 0, at `points` in view 1, with M of view 1: N×D, M×D, N×2, N, N, M.

        All as if they were negatives; then what changes for the few that correspond.
        """
        counted0, counted1 = counted0.float(), counted1.float()
        likeness = self._likeness(first * ~lost[:, None], second)
        negative = counted0 @ F.relu(likeness - self.negative_margin) @ counted1
        where, same = cells_near(points, shape, self.near)
        own = likeness.gather(1, where)
        change = self.positive * F.relu(self.positive_margin - own) - F.relu(own - self.negative_margin)
        return negative + (change * same * counted0[:, None] * counted1[where]).sum()

    def _likeness(self, first: Tensor, second: Tensor) -> Tensor:
        """N×M cosines of view 0's cells (rows) with view 1's, normalised or not."""
        cosines = first @ second.T
        if not self.normalise:
            return cosines
        positive = F.relu(cosines)
        squares = positive.square()
        rows = squares.sum(1).clamp_min(LEAST_SQUARE)
        columns = ((1 / rows) @ squares).clamp_min(LEAST_SQUARE)
        return positive * rows.rsqrt()[:, None] * columns.rsqrt()


def cells_near(points: Tensor, shape: tuple[int, int], near: float) -> tuple[Tensor, Tensor]:
    """N×K int64 cells of a map of `shape`, row by row, among which are all whose centres are at most `near` pixels from
    N×2 points, and N×K bool, those that are."""
    reach = int(near // CELL)
    steps = pixel_grid(2 * reach + 2, 2 * reach + 2, points.device).flatten(0, 1) - reach
    cells = ((points - (CELL - 1) / 2) / CELL).floor()[:, None] + steps
    distance = (cells * CELL + (CELL - 1) / 2 - points[:, None]).norm(dim=2)
    height, width = shape
    x, y = cells[..., 0].clamp(0, width - 1), cells[..., 1].clamp(0, height - 1)
    return (y * width + x).long(), inside(cells, height, width) & (distance <= near)


@dataclass(frozen=True)
class SparseDescriptorLoss:
    """A draw of cells, each with its counterpart and a draw of others (eric-yyjau's public code).

    positives: cells drawn from those of view 0 that view 1 sees, with repetition.  negatives: cells of view 1 drawn
    for each of them.
    The negatives that are within their margin do not count, not even in the mean.
    """

    positives: int = 1000
    negatives: int = 100
    weight: float = 1.0
    positive_margin: float = 1.0
    negative_margin: float = 0.2

    def __call__(self, descriptors0: Tensor, descriptors1: Tensor, warp: Warp, mask0: Tensor, mask1: Tensor) -> Tensor:
        """As of DenseDescriptorLoss; the counterpart is sampled where the cell's centre lands, between cells."""
        centres = cell_centres(descriptors0)
        warped = warp(centres.expand(len(descriptors0), -1, -1))
        drawn, usable = _draw(warped.visible & whole_cells(mask0), self.positives)
        points = warped.points.gather(1, drawn[..., None].expand(-1, -1, 2))
        first, second = (F.normalize(maps.flatten(2).transpose(1, 2), dim=2) for maps in (descriptors0, descriptors1))
        anchors = first.gather(1, drawn[..., None].expand(-1, -1, first.shape[2]))
        counterparts = F.normalize(sample(descriptors1, points, CELL), dim=2)
        attraction = F.relu(self.positive_margin - (anchors * counterparts).sum(2))

        others, rivals = _draw(whole_cells(mask1), self.positives * self.negatives)
        others, rivals = (values.unflatten(1, (self.positives, self.negatives)) for values in (others, rivals))
        cosines = (anchors @ second.transpose(1, 2)).gather(2, others)
        apart = (centres[others] - points[:, :, None]).norm(dim=3) > NEAR
        repulsion = F.relu(cosines - self.negative_margin)
        counted = (repulsion > 0) & apart & rivals & usable[..., None]
        return self.weight * (masked_mean(attraction, usable) + masked_mean(repulsion, counted))


def _draw(valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """B×count indices of entries of B×N bool `valid`, drawn with repetition, and which of them are valid at all."""
    number = valid.sum(1, keepdim=True)
    drawn = (number * torch.rand(len(valid), count, device=valid.device)).long()
    first = valid.byte().argsort(dim=1, descending=True, stable=True)
    return first.gather(1, drawn.minimum((number - 1).clamp_min(0))), (number > 0).expand(-1, count)


DESCRIPTOR_LOSSES = {
    "dense": DenseDescriptorLoss(),
    "paper": DenseDescriptorLoss(positive=250.0, weight=1e-4, normalise=False),
    "sparse": SparseDescriptorLoss(),
    # SuperPoint-PrP's; half a cell off, as CELL's.
    "prp": DenseDescriptorLoss(positive=0.6, weight=3e4, near=CELL / 2 - 0.5),
}
