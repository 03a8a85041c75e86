"""Reading maps at sub-pixel points, and points off maps, in torch; pixel centres are at integers everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_grid(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """H×W×2 float32: x, y of every pixel."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], -1).float()


def nearest_pixels(points: Tensor, height: int, width: int) -> Tensor:
    """B×N int64: the pixel of an image, row by row, that is nearest to each of B×N×2 points."""
    x, y = points.detach().round().unbind(-1)
    return (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()


def warp_points(homography: Tensor, points: Tensor) -> Tensor:
    """B×…×2 `points` under B×3×3 `homography`; points at or behind the horizon land far outside any image."""
    flat = points.flatten(1, -2)
    mapped = homography[..., :2] @ flat.mT + homography[..., 2:]
    depth = mapped[:, 2:]
    warped = torch.where(depth > 1e-6, mapped[:, :2] / depth.clamp_min(1e-6), -1e6)
    return warped.mT.reshape(points.shape)


def inside(points: Tensor, height: int, width: int, border: float = 0.0) -> Tensor:
    """B×… bool: points at least `border` pixels inside an image."""
    x, y = points.unbind(-1)
    return (x >= border) & (x <= width - 1 - border) & (y >= border) & (y <= height - 1 - border)


def sample(maps: Tensor, points: Tensor, stride: int = 1) -> Tensor:
    """B×N×C: bilinear samples of B×C×h×w `maps` at B×N×2 image points, clamped at the edge.

    Cell (i, j) of a map of `stride` has its centre at pixel stride·(j, i) + (stride − 1)/2.
    """
    height, width = maps.shape[-2:]
    x, y = points.unbind(-1)
    # Number by number: an export would freeze a tensor made of the two sizes.
    grid = torch.stack([(2 * x + 1) / (stride * width) - 1, (2 * y + 1) / (stride * height) - 1], -1)
    sampled = F.grid_sample(maps, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def sampled_lengths(maps: Tensor, points: Tensor, stride: int = 1) -> Tensor:
    """B×N: lengths of what ``sample`` gives, from products of neighbouring cells: 9 numbers a point, and not 4·C.

    maps: of 2×2 cells or more.  Points get no gradient; no length is below 1e-6.
    """
    height, width = maps.shape[-2:]
    x = ((points[..., 0] + 0.5) / stride - 0.5).clamp(0, width - 1)
    y = ((points[..., 1] + 0.5) / stride - 0.5).clamp(0, height - 1)
    left, top = x.floor().clamp_max(width - 2), y.floor().clamp_max(height - 2)
    right, low = x - left, y - top
    where = (top * (width - 1) + left).long()
    batch = torch.arange(len(maps), device=maps.device)[:, None] * (height - 1) * (width - 1)
    products = _products_in_squares(maps).flatten(0, 1)[(where + batch).flatten()].unflatten(0, where.shape)
    columns = torch.stack([(1 - right) ** 2, right * (1 - right), right**2], -1)
    rows = torch.stack([(1 - low) ** 2, low * (1 - low), low**2], -1)
    squares = (products * (rows[..., :, None] * columns[..., None, :]).flatten(-2)).sum(-1)
    return squares.clamp_min(1e-12).sqrt()


def _products_in_squares(maps: Tensor) -> Tensor:
    """B×(h − 1)(w − 1)×9: of each 2×2 cells, products that ``sampled_lengths`` weights by rows and columns.

    |Σ weights·cells|² is a sum over (upper², upper·lower, lower²) × (left², left·right, right²) of weights.
    """
    upper, lower = maps[..., :-1, :], maps[..., 1:, :]

    def dot(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(1)

    def across(first: Tensor, second: Tensor) -> list[Tensor]:
        left, right = (first[..., :-1], second[..., :-1]), (first[..., 1:], second[..., 1:])
        return [dot(*left), dot(left[0], right[1]) + dot(right[0], left[1]), dot(*right)]

    between = [2 * product for product in across(upper, lower)]
    return torch.stack([*across(upper, upper), *between, *across(lower, lower)], -1).flatten(1, 2)


def to_cells(maps: Tensor, cell: int) -> Tensor:
    """B×C×H×W → B×(C·cell²)×(H/cell)×(W/cell), row by row within a cell."""
    return F.pixel_unshuffle(maps, cell)


def soft_argmax(scores: Tensor, points: Tensor, radius: int) -> Tensor:
    """B×N×2: centre of gravity of B×1×H×W `scores` (≥ 0) within `radius` of B×N×2 integer points.

    What the runtime's ``refine_radius`` does; differentiable in the scores.  Windows are cut at the image's edge.
    """
    height, width = scores.shape[-2:]
    offsets = pixel_grid(2 * radius + 1, 2 * radius + 1, scores.device).reshape(-1, 2) - radius
    window = points[:, :, None] + offsets
    within = inside(window, height, width)
    x, y = window[..., 0].clamp(0, width - 1).long(), window[..., 1].clamp(0, height - 1).long()
    values = scores.flatten(1).gather(1, (y * width + x).flatten(1)).reshape(x.shape) * within
    weights = values / values.sum(-1, keepdim=True).clamp_min(1e-12)
    return points + (weights[..., None] * offsets).sum(-2)


def sample_aligned(maps: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    """B×N×C: bilinear samples of `maps` at B×N×2 points of an image of `height`×`width`, as KP2D's code does it.

    Its ``align_corners=True`` puts the centres of a map's corner cells on the centres of the image's corner
    pixels, half a cell off the cells' true centres.
    """
    grid = points * torch.tensor([2 / (width - 1), 2 / (height - 1)], device=points.device) - 1
    sampled = F.grid_sample(maps, grid[:, None], mode="bilinear", padding_mode="border", align_corners=True)
    return sampled[:, :, 0].transpose(1, 2)
