"""Views of a photograph under a homography: warped in the loader, or cut out there and warped on another device."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.homography import scale_homography, view_corners, warp_points
from kp_training.geometry.sampling import pixel_grid
from kp_training.geometry.sampling import warp_points as warp_points_on_device

_LEVELS = 3


class Part(NamedTuple):
    """What one view needs of a photograph, halved until the view hardly shrinks it further.

    pixels: C×S×S uint8 (grey, or RGB), zeros beyond `extent`.  extent: 2 float32, its width and height in pixels.
    part_from_view: 3×3 float32.  bounds: 4 float32, where the photograph's pixels begin (x, y) and end, in the part.
    """

    pixels: Tensor
    extent: Tensor
    part_from_view: Tensor
    bounds: Tensor


def warp_view(photo: np.ndarray, photo_from_view: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The height×width view of an H×W(×3) uint8 photograph, mirrored beyond its border, and a bool mask of what is not.

    Sampled from a halved photograph where the view shrinks it.
    """
    mask = cv2.warpPerspective(np.ones(photo.shape[:2], np.uint8), photo_from_view, (width, height),
                               flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    for _ in range(_halvings(photo_from_view, height, width)):
        photo = cv2.pyrDown(photo)  # its pixel i is centred on pixel 2·i
        photo_from_view = np.diag([0.5, 0.5, 1.0]) @ photo_from_view
    view = cv2.warpPerspective(photo, photo_from_view, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REFLECT_101)
    return view, mask.astype(bool)


def warp_cells(
    cells: np.ndarray, photo_size: tuple[int, int], photo_from_view: np.ndarray, height: int, width: int
) -> np.ndarray:
    """height×width bool: h×w `cells` over a whole photograph as a view sees them, False beyond it."""
    cells_from_photo = scale_homography(np.eye(3), np.ones(2), (np.array(cells.shape) / photo_size)[::-1])
    seen = cv2.warpPerspective(cells.astype(np.uint8), cells_from_photo @ photo_from_view, (width, height),
                               flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    return seen.astype(bool)


def cut_part(photo: np.ndarray, photo_from_view: np.ndarray, height: int, width: int) -> Part:
    """The Part of an H×W(×3) uint8 photograph (BGR) for a height×width view; S depends on the view's size alone."""
    side = part_side(height, width)
    halvings = _halvings(photo_from_view, height, width)
    size = np.array(photo.shape[1::-1])
    low, high = _needed(photo_from_view, height, width, size, 2**halvings)
    part = photo[low[1] : high[1], low[0] : high[0]]
    scale = 1.0
    while halvings > 0 or max(part.shape[:2]) > side:
        part, scale, halvings = cv2.pyrDown(part), scale / 2, halvings - 1
    part_from_photo = np.array([[scale, 0, -scale * low[0]], [0, scale, -scale * low[1]], [0, 0, 1]])
    part_from_view = part_from_photo @ photo_from_view
    bounds = scale * (np.concatenate([np.zeros(2), size]) - 0.5 - np.tile(low, 2))
    channels = to_channels(part)
    pixels = torch.zeros((len(channels), side, side), dtype=torch.uint8)
    pixels[:, : part.shape[0], : part.shape[1]] = channels
    numbers = (part.shape[1::-1], part_from_view / part_from_view[2, 2], bounds)
    return Part(pixels, *(torch.from_numpy(np.asarray(values, np.float32)) for values in numbers))


def warp_parts(parts: Part, height: int, width: int) -> tuple[Tensor, Tensor]:
    """N×C×height×width float32 views (0 to 255) of N Parts and N×height×width bool masks, as ``warp_view``'s."""
    side = parts.pixels.shape[-1]
    points = pixel_grid(height, width, parts.pixels.device).expand(len(parts.pixels), -1, -1, -1)
    points = warp_points_on_device(parts.part_from_view, points)
    low, high = parts.bounds[:, None, None].chunk(2, -1)
    mask = ((points >= low) & (points < high)).all(-1)
    last = (parts.extent[:, None, None] - 1).clamp_min(1)
    mirrored = last - (points.remainder(2 * last) - last).abs()
    views = F.grid_sample(parts.pixels.float(), mirrored * (2 / (side - 1)) - 1, align_corners=True)
    return views, mask


def part_side(height: int, width: int) -> int:
    """S of a Part: room for the view turned by any angle and half as large again, in whole cells of 8."""
    return int(np.ceil(1.5 * np.hypot(height, width) / 8)) * 8


def to_channels(image: np.ndarray) -> Tensor:
    """C×H×W uint8, grey or RGB, of an H×W or H×W×3 (BGR) uint8 image."""
    channels = image[None] if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(channels)


def _halvings(photo_from_view: np.ndarray, height: int, width: int) -> int:
    """How often to halve the photograph, from how much the view's middle shrinks it."""
    centre = view_corners(height, width).mean(0)
    origin, *steps = warp_points(photo_from_view, centre + [[0, 0], [1, 0], [0, 1]])
    shrink = np.sqrt(abs(np.linalg.det(np.array(steps) - origin)))
    return int(np.clip(np.log2(max(shrink, 1e-6)) + 0.4, 0, _LEVELS))


def _needed(
    photo_from_view: np.ndarray, height: int, width: int, size: np.ndarray, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high (x, y) of the pixels of a photograph of `size` that a view and the filters of `scale` reach."""
    corners = warp_points(photo_from_view, view_corners(height, width))
    if np.isnan(corners).any():
        return np.zeros(2, int), size
    low, high = corners.min(0) - 4 * scale, corners.max(0) + 4 * scale
    # What lies beyond a border is seen mirrored there.
    low, high = np.minimum(low, 2 * (size - 1) - high), np.maximum(high, -low)
    low = np.clip(np.floor(low / scale) * scale, 0, size - 2)  # so that a halved part's pixels are the photograph's
    return low.astype(int), np.clip(np.ceil(high) + 1, low + 2, size).astype(int)
