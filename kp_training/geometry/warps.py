"""Where the points of one view lie in the other: by a homography, or by depth and pose.

Losses ask a warp and need not know which it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.sampling import inside, nearest_pixels, pixel_grid, sample, warp_points

AWAY = -1e6
"""Pixels: where points go that have no place in the other view, far outside it."""
LEAST_DEPTH = 1e-6
"""Of a point before a camera, in the scene's unit."""
SLANT = 0.1
"""Greatest share of its depth by which a plane recedes from a window's middle to its border."""


class Warped(NamedTuple):
    """Points in the other view.

    points: B×N×2 pixels; `AWAY` behind the camera and where there is no depth; differentiable in the points warped.
    known: B×N bool, whether the points' places are right, inside the other image or not.
    visible: B×N bool, known, inside the other image where it shows its photograph, and not hidden there.
    """

    points: Tensor
    known: Tensor
    visible: Tensor


def hidden(warped: Warped, target_mask: Tensor) -> Tensor:
    """B×N bool: points that are not visible although the target shows its photograph where they lie.

    Another surface is before them, or the target's depth, which would tell, is unknown there.  A loss should neither
    take what is seen there for the point nor swear that it is not.  target_mask: B×H×W bool.
    """
    shown = inside(warped.points, *target_mask.shape[-2:]) & _shown(target_mask, warped.points)
    return warped.known & shown & ~warped.visible


class Warp(Protocol):
    """From a view (the source) to another (the target) of B pairs."""

    def __call__(self, points: Tensor) -> Warped:
        """B×N×2 pixels of the source view in the target view."""
        ...

    def pixels(self) -> Warped:
        """All of the source view's H·W pixels, row by row: what a call with them gives, in a fraction of its time."""
        ...

    @property
    def inverse(self) -> Warp:
        """From the target view to the source view."""
        ...


@dataclass(frozen=True, eq=False)
class HomographyWarp:
    """Two views of one photograph.

    homography: B×3×3 target_from_source, pixels.  source_mask, target_mask: B×H×W bool, where the views show it.
    """

    homography: Tensor
    source_mask: Tensor
    target_mask: Tensor

    def __call__(self, points: Tensor) -> Warped:
        """See `Warp`."""
        return self._seen(warp_points(self.homography, points), _shown(self.source_mask, points))

    def pixels(self) -> Warped:
        """See `Warp`."""
        height, width = self.source_mask.shape[-2:]
        grid = pixel_grid(height, width, self.source_mask.device).reshape(1, -1, 2)
        return self._seen(warp_points(self.homography, grid.expand(len(self.homography), -1, -1)),
                          self.source_mask.flatten(1))

    def _seen(self, warped: Tensor, known: Tensor) -> Warped:
        visible = known & inside(warped, *self.target_mask.shape[-2:]) & _shown(self.target_mask, warped)
        return Warped(warped, known, visible)

    @property
    def inverse(self) -> HomographyWarp:
        inverse = torch.linalg.inv(self.homography.double()).to(self.homography.dtype)
        return HomographyWarp(inverse, self.target_mask, self.source_mask)


class PosedView(NamedTuple):
    """What a pinhole camera saw.

    depth: B×H×W float32 along z, 0 = unknown.  intrinsics: B×3×3, K, whose last row is (0, 0, 1).
    mask: B×H×W bool, where the view shows its image; None = everywhere.
    One target (B = 1) may serve many sources.
    """

    depth: Tensor
    intrinsics: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reprojection:
    """Two views of one scene, by the source view's depth and the relative pose (PrP, "NeRF-supervised feature point
    detection and description").

    target_from_source: B×4×4, in the unit of the depths.
    window: side in pixels of the window in which a point near a jump of depth takes the nearest surface, since what is
    seen at an edge belongs to what is in front; 0 = off.  jump: least share of the depth that counts as one (the
    paper has .03 of its scenes' arbitrary unit); see `nearest_surface`.
    occlusion: a point is hidden where the target's depth differs by more than this share, or is unknown; 0 = no such
    check, as in the public code, which also keeps points behind the camera.
    """

    source: PosedView
    target: PosedView
    target_from_source: Tensor
    window: int = 5
    jump: float = 0.03
    occlusion: float = 0.05

    def __call__(self, points: Tensor) -> Warped:
        """See `Warp`.  The depth of a point is that of its nearest pixel."""
        matrix, _ = self._projection
        rays = (matrix[..., :2] @ points.mT + matrix[..., 2:]).unbind(1)
        depth = _nearest(self._surface, points)
        known = depth > 0
        if self.source.mask is not None:
            known &= _shown(self.source.mask, points)
        return self._seen(rays, depth, known)

    def pixels(self) -> Warped:
        """See `Warp`."""
        (matrix, _), depth = self._projection, self._surface.flatten(1)
        height, width = self._surface.shape[-2:]
        x, y = torch.arange(width, device=depth.device), torch.arange(height, device=depth.device)[:, None]
        rays = [(a * x + (b * y + c)).flatten(1) for a, b, c in matrix[..., None, None].permute(1, 2, 0, 3, 4)]
        known = depth > 0
        if self.source.mask is not None:
            known &= self.source.mask.flatten(1)
        return self._seen(rays, depth, known)

    @functools.cached_property
    def _projection(self) -> tuple[Tensor, Tensor]:
        """B×3×3 and B×3: a pixel (x, y) of depth z is seen at the first times (x, y, 1) times z plus the second."""
        intrinsics, pose = self.target.intrinsics, self.target_from_source
        matrix = intrinsics @ pose[:, :3, :3] @ torch.linalg.inv(self.source.intrinsics)
        return matrix, (intrinsics @ pose[:, :3, 3:])[..., 0]

    def _seen(self, rays: Sequence[Tensor], depth: Tensor, known: Tensor) -> Warped:
        """Of N points: the three coordinates of their rays, B×N each, their depth, and whether that is known."""
        shifts = self._projection[1].unbind(-1)
        x, y, z = (torch.addcmul(shift[:, None], ray, depth) for ray, shift in zip(rays, shifts))
        before = known & (z > LEAST_DEPTH)
        scale = 1 / z.clamp_min(LEAST_DEPTH)
        warped = torch.stack([torch.where(before, number * scale, AWAY) for number in (x, y)], -1)
        height, width = self.target.depth.shape[-2:]
        visible = before & inside(warped, height, width)
        if self.target.mask is not None:
            visible &= _shown(self.target.mask, warped)
        if self.occlusion:
            where = nearest_pixels(warped, height, width)
            near, far = (_taken(bound, where) for bound in self._bounds)
            visible &= (z >= near) & (z <= far)
        return Warped(warped, known.expand_as(visible), visible)

    @property
    def inverse(self) -> Reprojection:
        return replace(self, source=self.target, target=self.source,
                       target_from_source=torch.linalg.inv(self.target_from_source))

    @functools.cached_property
    def _surface(self) -> Tensor:
        return nearest_surface(self.source.depth, self.window, self.jump)

    @functools.cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        """B×H×W least and greatest depth at which a point is seen in the target, by its 3×3 pixels; where no depth is
        known, none.

        Of its nearest surface too: what the window put on the edge of one before another is not behind its neighbour.
        """
        near, far = _extremes(nearest_surface(self.target.depth, self.window, self.jump), 3)
        return near * (1 - self.occlusion), far * (1 + self.occlusion)


def nearest_surface(depth: Tensor, window: int, jump: float) -> Tensor:
    """B×H×W `depth`; where the least in window×window pixels is before it by a share of at least `jump`, that least.

    Unknown depths (0) stay so, and count for nothing.  Windows that the border cuts are off, as in the public code,
    which asks whether least and greatest differ.  That mistakes a floor for jumps wherever 1 / depth, linear on a
    plane, changes much in a window (133 pixels below the horizon and nearer, at .03); so the step down from here to the
    greatest, up to `SLANT`, is taken off the step up to the least, as what a plane through the pixel explains.
    """
    margin = window // 2
    if not margin:
        return depth
    near, far = _extremes(depth, window)
    slant = (1 - depth / far.clamp_min(LEAST_DEPTH)).clamp_max(SLANT)
    edge = (depth / near - 1 - slant >= jump) & (depth > 0)
    edge[:, :margin], edge[:, -margin:], edge[:, :, :margin], edge[:, :, -margin:] = False, False, False, False
    return torch.where(edge, near, depth)


def _extremes(depth: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """B×H×W least (inf for none) and greatest known depth in side×side pixels."""
    return -_greatest(torch.where(depth > 0, -depth, -torch.inf), side), _greatest(depth, side)


def _greatest(maps: Tensor, side: int) -> Tensor:
    """B×H×W: the greatest of B×H×W `maps` in side×side pixels; what `max_pool2d` gives, whose CPU code is slow."""
    maps = F.pad(maps, [side // 2] * 4, value=-torch.inf)
    for axis in (1, 2):
        reach = 1
        while reach < side:
            step = min(reach, side - reach)
            length = maps.shape[axis] - step
            maps = torch.maximum(maps.narrow(axis, 0, length), maps.narrow(axis, step, length))
            reach += step
    return maps


def _nearest(maps: Tensor, points: Tensor) -> Tensor:
    """B×N values of B×H×W `maps` at the pixels nearest to B×N×2 `points`; 0 outside."""
    size = maps.shape[-2:]
    return torch.where(inside(points.detach().round(), *size), _taken(maps, nearest_pixels(points, *size)), 0)


def _taken(maps: Tensor, where: Tensor) -> Tensor:
    """B×N values of B×H×W or 1×H×W `maps` at pixels."""
    return maps.flatten(1).expand(len(where), -1).gather(1, where)


def _shown(mask: Tensor, points: Tensor) -> Tensor:
    """B×N bool: all pixels round each point belong to the B×H×W `mask`."""
    return sample(mask[:, None].float().expand(len(points), -1, -1, -1), points)[..., 0] > 0.99
