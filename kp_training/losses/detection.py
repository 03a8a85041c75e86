"""Detectors on full-resolution logits: where two views agree, helped by corners that survive many warps."""

from __future__ import annotations

import torch
from torch import Tensor

from kp_training.geometry.sampling import pixel_grid, sample, soft_argmax, to_cells
from kp_training.geometry.warps import Warp
from kp_training.losses.dual_softmax import masked_mean


def shift_grid(maps: Tensor, shift: tuple[int, int], cell: int) -> Tensor:
    """`maps` (B×C×H×W) cut to whole cells of a grid that begins at `shift` (x, y), each below `cell`.

    A grid in another place at each step leaves the detector no cell borders to cling to.
    """
    x, y = shift
    height, width = maps.shape[-2:]
    rows, columns = (height - y) // cell, (width - x) // cell
    return maps[..., y : y + rows * cell, x : x + columns * cell]


def with_dustbin(logits: Tensor, cell: int = 8) -> Tensor:
    """B×(cell² + 1)×h×w log-probabilities: each pixel of a cell, then nothing to find in it (logit 0)."""
    cells = to_cells(logits, cell)
    return torch.cat([cells, torch.zeros_like(cells[:, :1])], 1).log_softmax(1)


def corner_loss(logits: Tensor, labels: Tensor, mask: Tensor, cell: int = 8) -> Tensor:
    """Cross-entropy of each cell's pixels and dustbin with its strongest corner.

    logits: B×1×H×W.  labels: B×1×H×W uint8 as `data.corners.draw_labels` makes them.  mask: B×1×H×W bool, cells
    must be whole.  The corner's share of the target is the square root of its strength, the dustbin has the rest,
    so that scores rank as strengths do and no threshold divides corners from edges.
    """
    strengths, where = to_cells(labels.float(), cell).max(1, keepdim=True)
    share = (strengths / 255).square()
    log_probability = with_dustbin(logits, cell)
    entropy = -share * log_probability.gather(1, where) - (1 - share) * log_probability[:, -1:]
    return masked_mean(entropy, to_cells(mask.float(), cell).amin(1, keepdim=True) > 0)


def repeatability_loss(
    logits: Tensor, other: Tensor, whole: Tensor, penalty: float, cell: int = 8, counted: Tensor | None = None
) -> Tensor:
    """Minus the expected reward when both views draw a pixel or nothing: 1 if they agree on it, −penalty if not.

    logits, other, whole: as in `agreement_loss`.  counted: B×H/cell×W/cell, where agreeing is rewarded and elsewhere a
    failure; None = everywhere.  Edges, where a pixel is drawn along a line and seldom twice, lose more than they win;
    cells where either view draws nothing count 0.
    """
    ours, theirs = (with_dustbin(maps, cell).exp() for maps in (logits, other))
    agree = (ours[:, :-1] * theirs[:, :-1]).sum(1) * (1 if counted is None else counted)
    both = (1 - ours[:, -1]) * (1 - theirs[:, -1])
    return masked_mean(penalty * (both - agree) - agree, whole)


def agreement_loss(logits: Tensor, other: Tensor, weights: Tensor, cell: int = 8) -> Tensor:
    """−log of the probability that two softmaxes over a cell's pixels pick the same pixel, weighted mean over cells.

    logits: B×1×H×W of this view.  other: the other view's logits warped into this one.  weights: B×H/cell×W/cell.
    """
    both = to_cells(logits, cell).log_softmax(1) + to_cells(other, cell).log_softmax(1)
    return masked_mean(-both.logsumexp(1), weights)


def warp_logits(logits1: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """View 1's logits (B×1×H×W) as view 0, of the same size, sees them, and B×1×H×W bool where both views see the same.

    warp: from view 0 to view 1.
    """
    warped = warp.pixels()
    return sample(logits1, warped.points).reshape(logits1.shape), warped.visible.reshape(logits1.shape)


def draw_points(logits: Tensor, cell: int, noise: Tensor | None = None) -> Tensor:
    """B×(cells)×2 integer pixel positions, one drawn from each cell's softmax (its best with no `noise`).

    noise: Gumbel noise like `logits` (B×1×H×W); adding it before the maximum draws from the softmax.
    """
    rows, columns = logits.shape[-2] // cell, logits.shape[-1] // cell
    where = to_cells(logits if noise is None else logits + noise, cell).argmax(1)
    corner = pixel_grid(rows, columns, logits.device) * cell
    return (torch.stack([where % cell, where // cell], -1) + corner).flatten(1, 2)


def location_loss(scores0: Tensor, scores1: Tensor, points0: Tensor, warp: Warp, weights: Tensor,
                  radius: int = 2) -> Tensor:
    """How far, in pixels, the refined point of view 0 lies from the refined point that view 1 has there.

    scores: B×1×H×W ≥ 0.  points0: B×N×2 integer pixels.  weights: B×N; points that view 1 does not see count 0.
    Points are refined as the runtime does it.
    """
    expected1, _, visible = warp(soft_argmax(scores0, points0, radius))
    nearest = expected1.detach().round().clamp(-1e4, 1e4)
    offsets = soft_argmax(scores1, nearest, radius) - expected1
    distance = (offsets.square().sum(-1) + 1e-4).sqrt()
    return masked_mean(distance, weights * visible)
