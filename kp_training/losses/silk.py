"""SiLK's losses over all pixels of two views: descriptors find each other, the detector learns which of them do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.sampling import pixel_grid, warp_points
from kp_training.losses.blockwise import BLOCK, logsumexp_and_best

Pairs = tuple[Tensor, Tensor]


def cell_positions(height: int, width: int, margin: int, device: torch.device | str = "cpu") -> Tensor:
    """(h·w)×2 image positions of the cells of an h×w map, row by row; the map lacks `margin` pixels at each side.

    SiLK's "+9"; with pixel centres at integers there is no half pixel to add.
    """
    return pixel_grid(height, width, device).flatten(0, 1) + margin


def nearest_cells(points: Tensor, height: int, width: int, margin: int) -> Tensor:
    """N int64: index of the cell that holds each of N×2 image `points`, −1 for none; undoes `cell_positions`."""
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


def homography_pairs(homography: Tensor, mask0: Tensor, mask1: Tensor, margin: int) -> Pairs:
    """`mutual_pairs` of two views of one plane, of cells that both show the photograph.

    homography: 3×3 view1_from_view0.  mask0, mask1: H×W bool.
    """
    height, width = mask0.shape[0] - 2 * margin, mask0.shape[1] - 2 * margin
    positions = cell_positions(height, width, margin, homography.device)
    inverse = torch.linalg.inv(homography.double()).to(homography.dtype)
    ways = []
    for matrix, mask in ((homography, mask0), (inverse, mask1)):
        cells = nearest_cells(warp_points(matrix[None], positions[None])[0], height, width, margin)
        shown = mask[margin : margin + height, margin : margin + width].flatten()
        ways.append(torch.where(shown, cells, -1))
    return mutual_pairs(*ways)


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
    """SiLK's ``loss``, its parts ``descriptor`` and ``detector`` (weights 1), and ``matched``, the share of pairs won.

    logits: B×1×h×w of each view.  descriptors: B×D×h×w of each view.  pairs: of each of the B, see `mutual_pairs`.
    descriptor: cross-entropy of each cell of a pair among all cells of the other view, the mean over pairs, summed
    over both directions.  detector: binary cross-entropy, at the cells of pairs only, with whether the two are each
    other's best match.  Expected of it: as long as few pairs match, all logits sink; they recover as more do.
    """
    descriptor, detector, matched = logits[0].new_zeros(3).unbind()
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
    count = max(sum(len(first) for first, _ in pairs), 1)
    descriptor, detector, matched = descriptor / count, detector / (2 * count), matched / count
    return {"loss": descriptor + detector, "descriptor": descriptor, "detector": detector, "matched": matched}
