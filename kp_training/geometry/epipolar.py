"""What the relative pose of two views says of their points without any depth: epipolar lines, in torch.

Points are in pixels, pixel centres at integers; a line is (a, b, c) with a·x + b·y + c = 0 and a² + b² = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST = 1.0
"""Pixels of a line within the image below which it has no candidates to choose from."""


class Segments(NamedTuple):
    """Parts of lines that lie within an image.

    start, end: B×N×2 pixels, on its border.  valid: B×N bool, where there is such a part.
    """

    start: Tensor
    end: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class EpipolarViews:
    """Two views, 0 and 1, of B pairs, and what their poses say.

    fundamental: B×3×3 F with x1ᵀ·F·x0 = 0.  mask0, mask1: B×H×W bool, where the views show their frames.
    """

    fundamental: Tensor
    mask0: Tensor
    mask1: Tensor

    @property
    def inverse(self) -> EpipolarViews:
        """The same with the views exchanged."""
        return EpipolarViews(self.fundamental.mT, self.mask1, self.mask0)


def fundamental_matrix(intrinsics0: Tensor, intrinsics1: Tensor, view1_from_view0: Tensor) -> Tensor:
    """B×3×3 float32 F with x1ᵀ·F·x0 = 0, of norm 1; of B×3×3 intrinsics K and a B×4×4 pose.

    Views from one place have none: 0.
    """
    inverse0, inverse1, pose = (values.double() for values in
                                (torch.linalg.inv(intrinsics0.double()), torch.linalg.inv(intrinsics1.double()),
                                 view1_from_view0))
    x, y, z = pose[:, :3, 3].unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    fundamental = inverse1.mT @ cross @ pose[:, :3, :3] @ inverse0
    norm = torch.linalg.matrix_norm(fundamental)[:, None, None]
    return torch.where(norm > 0, fundamental / norm.clamp_min(1e-300), 0).float()


def epipolar_lines(fundamental: Tensor, points0: Tensor) -> Tensor:
    """B×N×3 lines in view 1 of B×N×2 points of view 0; 0 for a point at the epipole, which has none."""
    # In double: the two large terms of a far point's line all but cancel.
    ones = torch.ones_like(points0[..., :1])
    lines = torch.cat([points0, ones], -1).double() @ fundamental.double().mT
    norm = lines[..., :2].norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-12, lines / norm.clamp_min(1e-12), 0).to(points0.dtype)


def line_distance(lines: Tensor, points: Tensor) -> Tensor:
    """B×N pixels from each of B×N×2 points to its own of B×N×3 lines; differentiable in the points."""
    return ((lines[..., :2] * points).sum(-1) + lines[..., 2]).abs()


def distances_to_lines(lines: Tensor, points: Tensor) -> Tensor:
    """B×N×M pixels from each of B×M×2 points to each of B×N×3 lines."""
    return (lines[..., :2] @ points.mT + lines[..., 2:]).abs()


def epipolar_distances(fundamental: Tensor, points0: Tensor, points1: Tensor) -> tuple[Tensor, Tensor]:
    """B×N×M pixels that every two of B×N×2 and B×M×2 points miss each other by: in view 1, and in view 0.

    ∞ where a point has no line.
    """
    lines1, lines0 = epipolar_lines(fundamental, points0), epipolar_lines(fundamental.mT, points1)
    in1 = distances_to_lines(lines1, points1).masked_fill(~_exists(lines1)[..., None], torch.inf)
    in0 = distances_to_lines(lines0, points0).mT.masked_fill(~_exists(lines0)[:, None], torch.inf)
    return in1, in0


def segments_within(lines: Tensor, height: int, width: int) -> Segments:
    """The part of each of B×N×3 lines between its two crossings of the image's border.

    The border runs through the centres of the outermost pixels.  The paper's code counts crossings with the four sides
    and takes a line with exactly two, so that it loses those through a corner, which has two sides; here the line is
    cut by pairs of opposite sides.  A line that touches a corner alone is none.
    """
    normal, offset = lines[..., :2], lines[..., 2:]
    direction = torch.stack([-normal[..., 1], normal[..., 0]], -1)
    foot = -offset * normal  # the point of the line nearest to pixel (0, 0)
    size = torch.tensor([width - 1, height - 1], dtype=lines.dtype, device=lines.device)
    along = direction.abs() > 1e-9
    safe = torch.where(along, direction, 1)
    first, second = -foot / safe, (size - foot) / safe
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    between = (foot >= 0) & (foot <= size)  # all that matters for a line along the sides
    low = torch.where(along, low, torch.where(between, -torch.inf, torch.inf)).amax(-1, keepdim=True)
    high = torch.where(along, high, torch.where(between, torch.inf, -torch.inf)).amin(-1, keepdim=True)
    valid = _exists(lines)[..., None] & (high - low >= SHORTEST)
    start, end = (torch.where(valid, foot + torch.where(valid, distance, 0) * direction, 0)
                  for distance in (low, high))
    limited = (torch.minimum(point.clamp_min(0), size) for point in (start, end))
    return Segments(*limited, valid[..., 0])


def points_on_segments(segments: Segments, count: int) -> Tensor:
    """B×N×count×2 points, evenly from one end to the other."""
    share = torch.linspace(0, 1, count, device=segments.start.device)[:, None]
    return torch.lerp(segments.start[:, :, None], segments.end[:, :, None], share)


def _exists(lines: Tensor) -> Tensor:
    return lines[..., :2].abs().sum(-1) > 0
