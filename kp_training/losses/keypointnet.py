"""KP2D's losses without IO-Net: association, location, descriptor triplet, score (its section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.sampling import inside, pixel_grid, sample_aligned, warp_points
from kp_training.losses.dual_softmax import masked_mean
from kp_training.networks.keypointnet import CellMaps, without_border

ASSOCIATION_RADIUS = 4.0
SAFE_BOX = 4.0
MARGIN = 0.2
LEAST_CELLS = 20


def cell_points(offsets: Tensor, cell: int, cross_ratio: float) -> Tensor:
    """B×(h·w)×2 pixel positions of the cells' points, row by row: cell centre + ratio · half cell · offset."""
    half = (cell - 1) / 2
    centres = pixel_grid(*offsets.shape[-2:], offsets.device) * cell + half
    return (centres + cross_ratio * half * offsets.permute(0, 2, 3, 1)).flatten(1, 2)


def paper_losses(
    source: CellMaps, target: CellMaps, homography: Tensor, cell: int, cross_ratio: float
) -> dict[str, Tensor]:
    """KP2D's losses by name, with their sum (weights 1) as ``loss``.

    homography: B×3×3 target_from_source.  The descriptor's weight of 2 is the code's extra factor.
    """
    height, width = source.scores.shape[-2] * cell, source.scores.shape[-1] * cell
    points0 = cell_points(source.offsets, cell, cross_ratio)
    points1 = cell_points(target.offsets, cell, cross_ratio)
    warped = warp_points(homography, points0)
    usable = inside(warped, height, width) & (without_border(source.scores).flatten(1) > 0)

    distance, nearest = torch.cdist(warped, points1, compute_mode="donot_use_mm_for_euclid_dist").min(2)
    associated = usable & (distance < ASSOCIATION_RADIUS)
    # The paper prints a sum over pairs; the code's mean does not depend on how many there are.
    location = masked_mean(distance, associated)

    score0 = source.scores.flatten(1)
    score1 = target.scores.flatten(1).gather(1, nearest)
    mean_distance = location.detach() if not associated.any() else distance[associated].mean()
    peaks = masked_mean((score0 + score1) * (distance - mean_distance), associated)
    sampled1 = sample_aligned(target.scores, warped, height, width)[..., 0]
    score = peaks + 2 * masked_mean((sampled1 - score0).square(), usable)

    descriptor = descriptor_loss(source.descriptors, target.descriptors, points0.detach(), warped.detach(), usable,
                                 height, width)
    return {"loss": location + descriptor + score, "location": location, "descriptor": descriptor, "score": score,
            "associated": associated.float().mean()}


def descriptor_loss(map0: Tensor, map1: Tensor, points0: Tensor, points1: Tensor, usable: Tensor,
                    height: int, width: int) -> Tensor:
    """2 × mean triplet loss of `usable` points (B×N bool) with the hardest negative of the other image.

    Negatives lie outside a box of ±4 pixels about the truth (the code's; the paper prints 8).  A pair of images
    with fewer than 20 usable points is left out.
    """
    first = F.normalize(sample_aligned(map0, points0, height, width), dim=-1)
    second = F.normalize(sample_aligned(map1, points1, height, width), dim=-1)
    distances = (2 - 2 * first @ second.transpose(1, 2)).clamp_min(1e-6).sqrt()
    apart = (points1[:, :, None] - points1[:, None]).abs().amax(-1)
    hardest = distances.masked_fill((apart <= SAFE_BOX) | ~usable[:, None], torch.inf).amin(2)
    triplet = F.relu(distances.diagonal(dim1=1, dim2=2) - hardest + MARGIN)
    enough = usable & (usable.sum(1, keepdim=True) >= LEAST_CELLS)
    return 2 * masked_mean(triplet, enough)
