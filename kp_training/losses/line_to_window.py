"""PoSFeat's line-to-window search: descriptors learn from poses alone ("Decoupling makes …", CVPR 2022, section 3.2).

A point seeks itself first on its epipolar line, then in a window round the best place there; where the window says
that it is, should be on the line.  The code scales pixels by the width less 1 and samples as if by the width, up to
half a pixel off at the borders; here both are by the width (``geometry.sampling``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.epipolar import (
    EpipolarViews,
    epipolar_lines,
    line_distance,
    points_on_segments,
    segments_within,
)
from kp_training.geometry.sampling import inside, nearest_pixels, pixel_grid, sample, sampled_lengths
from kp_training.losses.dual_softmax import masked_mean

SHARPNESS = 60.0
"""What cosines are multiplied by before a softmax (the code's; absent from the paper)."""
WINDOW_SAMPLES = (12, 16)
BLOCK = 16
JITTER = 0.707


class Found(NamedTuple):
    """Where points were found in the other view.

    points: B×N×2 pixels, the mean over a window.  spread: B×N pixels, summed standard deviations of x and y.
    valid: B×N bool.
    """

    points: Tensor
    spread: Tensor
    valid: Tensor


def line_to_window_loss(
    maps0: Tensor, maps1: Tensor, stride: int, views: EpipolarViews, window: float = 0.1, line_samples: int = 100,
    farthest: float = 48.0,
) -> dict[str, Tensor]:
    """Epipolar distance in pixels of where view 0's points are found in view 1, and the other way round, as ``loss``.

    maps0, maps1: B×D×h×w descriptors of any length, `stride` pixels a cell.  window: of a side of the image, what the
    window reaches to both sides, as ±0.1 where the image is [−1, 1].  line_samples: candidates on a line.
    Points found more than `farthest` pixels off the line are not counted.  Watched: ``distance`` and ``counted``, the
    share of points that are.
    """
    forward = _one_way(maps0, maps1, stride, views, window, line_samples, farthest)
    back = _one_way(maps1, maps0, stride, views.inverse, window, line_samples, farthest)
    watched = {name: (forward[name] + back[name]).detach() / 2 for name in ("distance", "counted")}
    return {"loss": forward["loss"] + back["loss"], **watched}


def _one_way(
    maps0: Tensor, maps1: Tensor, stride: int, views: EpipolarViews, window: float, line_samples: int, farthest: float
) -> dict[str, Tensor]:
    height, width = views.mask1.shape[-2:]
    points, shown = draw_queries(views.mask0)
    lines = epipolar_lines(views.fundamental, points)
    queries = F.normalize(sample(maps0, points, stride), dim=-1)
    segments = segments_within(lines, height, width)
    centres, seen = best_on_line(queries, maps1, stride, points_on_segments(segments, line_samples), views.mask1)
    half = half_window(window, height, width, points.device)
    # The code's, to both sides; the paper has it to one side, and as large as half the window.
    centres = centres + JITTER * half * (2 * torch.rand_like(centres) - 1)
    found = search_window(queries, maps1, stride, centres, half, WINDOW_SAMPLES, views.mask1)
    return weighted_distance(line_distance(lines, found.points), found, shown & segments.valid & seen, farthest)


def draw_queries(mask: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """B×N×2 integer pixels, one drawn in each whole `block`² of a B×H×W mask, and B×N bool, those that it shows."""
    count, height, width = mask.shape
    rows, columns = height // block, width // block
    corners = pixel_grid(rows, columns, mask.device).reshape(1, -1, 2) * block
    points = corners + torch.randint(block, (count, rows * columns, 2), device=mask.device)
    return points, shown_at(mask, points)


@torch.no_grad()
def best_on_line(
    queries: Tensor, maps: Tensor, stride: int, candidates: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """B×N×2, of each point's B×N×L×2 `candidates` the likest to its B×N×D query, and B×N bool, whether any is shown."""
    similar, shown = _similarities(queries, maps, stride, candidates, mask)
    best = similar.masked_fill(~shown, -torch.inf).argmax(-1)[..., None, None].expand(-1, -1, -1, 2)
    return candidates.gather(2, best)[:, :, 0], shown.any(-1)


def half_window(share: float, height: int, width: int, device: torch.device) -> Tensor:
    """x and y in pixels that a window reaches to both sides: that share of half the image."""
    return share * torch.tensor([width, height], device=device) / 2


def search_window(
    queries: Tensor, maps: Tensor, stride: int, centres: Tensor, half: Tensor, samples: tuple[int, int], mask: Tensor
) -> Found:
    """The mean position of `samples` (rows, columns) in a window, by softmax of 60·cosine with B×N×D unit queries.

    centres: B×N×2 pixels, of the windows.  half: x and y that they reach to both sides.  What `mask` (B×H×W) does not
    show counts nothing; where that is all, it is not valid.
    """
    rows, columns = samples
    steps = pixel_grid(rows, columns, maps.device).reshape(-1, 2)
    steps = 2 * steps / torch.tensor([columns - 1, rows - 1], device=maps.device) - 1
    places = centres[:, :, None] + steps * half
    similar, shown = _similarities(queries, maps, stride, places, mask)
    valid = shown.any(-1)
    similar = (SHARPNESS * similar).masked_fill(~shown & valid[..., None], -torch.inf)
    return expected_position(similar.softmax(-1), places, valid)


def expected_position(weights: Tensor, places: Tensor, valid: Tensor) -> Found:
    """Mean and spread of B×N×L×2 (or 1×1×L×2) places under B×N×L weights that sum to 1."""
    mean = (weights[..., None] * places).sum(-2)
    variance = (weights[..., None] * (places - mean[:, :, None]).square()).sum(-2)
    return Found(mean, variance.clamp_min(1e-6).sqrt().sum(-1), valid)


def weighted_distance(distances: Tensor, found: Found, counted: Tensor, farthest: float) -> dict[str, Tensor]:
    """Mean of B×N `distances` in pixels up to `farthest`, those that are surer about their place weighing more.

    Weights are 1 / spread, without gradient and of mean 1 over the points that count (the code's; the paper divides by
    the variance).
    """
    counted = counted & found.valid & (distances.detach() < farthest)
    weights = 1 / found.spread.detach()
    weights = weights / masked_mean(weights, counted).clamp_min(1e-12)
    return {"loss": masked_mean(weights * distances, counted),
            "distance": masked_mean(distances.detach(), counted), "counted": counted.float().mean()}


def _similarities(queries: Tensor, maps: Tensor, stride: int, places: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """B×N×L cosines of B×N×D unit queries with a map at B×N×L×2 places, and bool, which of them the mask shows.

    Each query's product with the whole map is sampled, not the map: the same numbers in a fifteenth of the time.
    """
    count = places.shape[1:3]
    flat = places.flatten(1, 2)
    products = (queries @ maps.flatten(2)).flatten(0, 1).unflatten(-1, (1, *maps.shape[-2:]))
    along = sample(products, places.flatten(0, 1), stride).unflatten(0, (len(maps), -1))[..., 0]
    return along / sampled_lengths(maps, flat, stride).unflatten(1, count), shown_at(mask, flat).unflatten(1, count)


def shown_at(mask: Tensor, points: Tensor) -> Tensor:
    """B×N bool: B×N×2 points within the image whose nearest pixel the B×H×W mask shows."""
    size = mask.shape[-2:]
    return mask.flatten(1).gather(1, nearest_pixels(points, *size)) & inside(points, *size)
