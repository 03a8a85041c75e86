"""Search over the whole view, then in a window, as CAPS has it; PoSFeat's model 4 learns its descriptors so.

"Learning feature descriptors using camera pose supervision", Wang et al., ECCV 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.epipolar import EpipolarViews, epipolar_lines, line_distance
from kp_training.geometry.sampling import pixel_grid, sample
from kp_training.losses.line_to_window import (
    JITTER,
    SHARPNESS,
    Found,
    draw_queries,
    expected_position,
    half_window,
    search_window,
    shown_at,
    weighted_distance,
)

WINDOW_SAMPLES = (15, 20)
"""A sample a cell at 1/4 of 480×640, where the window is 60×80 pixels."""


class Levels(NamedTuple):
    """Descriptors of a view, of any length, and pixels a cell: B×D×h×w, for the window and for the whole view."""

    fine: Tensor
    coarse: Tensor
    fine_stride: int
    coarse_stride: int


def coarse_to_fine_loss(
    levels0: Levels, levels1: Levels, views: EpipolarViews, window: float = 0.125, cycle_weight: float = 0.1,
    farthest: float = 48.0,
) -> dict[str, Tensor]:
    """Epipolar distance in pixels of where view 0's points are found at both levels, and of how far they come back.

    Both ways, as ``loss``; window, farthest: see ``line_to_window_loss``.  Watched: ``distance``, of the fine level,
    and ``counted``, the share of points that are counted there.
    """
    forward = _one_way(levels0, levels1, views, window, cycle_weight, farthest)
    back = _one_way(levels1, levels0, views.inverse, window, cycle_weight, farthest)
    watched = {name: (forward[name] + back[name]).detach() / 2 for name in ("distance", "counted")}
    return {"loss": forward["loss"] + back["loss"], **watched}


def _one_way(
    levels0: Levels, levels1: Levels, views: EpipolarViews, window: float, cycle_weight: float, farthest: float
) -> dict[str, Tensor]:
    half = half_window(window, *views.mask1.shape[-2:], levels0.fine.device)
    points, shown = draw_queries(views.mask0)
    lines = epipolar_lines(views.fundamental, points)
    shown &= lines[..., :2].abs().sum(-1) > 0

    def fine(source: Levels, target: Levels, places: Tensor, centres: Tensor, mask: Tensor) -> Found:
        queries = _unit(source.fine, places, source.fine_stride)
        return search_window(queries, target.fine, target.fine_stride, centres, half, WINDOW_SAMPLES, mask)

    coarse1 = search_everywhere(_unit(levels0.coarse, points, levels0.coarse_stride), levels1, views.mask1)
    fine1 = fine(levels0, levels1, points, coarse1.points.detach(), views.mask1)
    coarse0 = search_everywhere(_unit(levels1.coarse, coarse1.points, levels1.coarse_stride), levels0, views.mask0)
    # Round the point itself, the middle of the window would be right by accident.
    jittered = points + JITTER * half * (2 * torch.rand_like(points) - 1)
    fine0 = fine(levels1, levels0, fine1.points, jittered, views.mask0)
    epipolar = [weighted_distance(line_distance(lines, found.points), found, shown, farthest)
                for found in (coarse1, fine1)]
    cycles = [weighted_distance(torch.linalg.vector_norm(back.points - points, dim=-1), back, shown & there.valid,
                                farthest) for there, back in ((coarse1, coarse0), (fine1, fine0))]
    loss = sum(part["loss"] for part in epipolar) + cycle_weight * sum(part["loss"] for part in cycles)
    return epipolar[1] | {"loss": loss}


def search_everywhere(queries: Tensor, target: Levels, mask: Tensor) -> Found:
    """The mean position of all coarse cells, by softmax of 60·cosine with B×N×D unit queries.

    Cells whose centre `mask` (B×H×W) does not show count nothing.
    """
    stride, maps = target.coarse_stride, target.coarse
    centres = pixel_grid(*maps.shape[-2:], maps.device).reshape(1, -1, 2) * stride + (stride - 1) / 2
    shown = shown_at(mask, centres.expand(len(mask), -1, -1))[:, None]
    valid = shown.any(-1).expand(-1, queries.shape[1])
    similar = SHARPNESS * queries @ F.normalize(maps, dim=1).flatten(2)
    weights = similar.masked_fill(~shown & valid[..., None], -torch.inf).softmax(-1)
    return expected_position(weights, centres[:, None], valid)


def _unit(maps: Tensor, points: Tensor, stride: int) -> Tensor:
    return F.normalize(sample(maps, points, stride), dim=-1)
