"""A detector that learns by trial: draw keypoints, match them, and make what matched rightly more probable.

PoSFeat ("Decoupling makes …", CVPR 2022, section 3.3), after DISK (NeurIPS 2020).  Each cell of the image draws one of
its pixels or nothing; a match of two points that fit the relative pose is rewarded, any other costs a little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.epipolar import EpipolarViews, epipolar_distances
from kp_training.geometry.sampling import pixel_grid, sample, to_cells
from kp_training.losses.line_to_window import SHARPNESS, shown_at


class Drawn(NamedTuple):
    """What each of the M cells of a view drew, row by row.

    points: B×M×2 integer pixels.  accepted: B×M bool, whether it drew a pixel at all.
    log_probability: B×M, of that pixel, with gradient; 0 where none was drawn.
    """

    points: Tensor
    accepted: Tensor
    log_probability: Tensor


class Reward(NamedTuple):
    """right: of a match within `tolerance` pixels of both epipolar lines (the paper: of one).  wrong: of any other."""

    right: float = 1.0
    wrong: float = -0.25
    tolerance: float = 2.0


REWARD = Reward()


def accepting_policy(scores: Tensor, cell: int = 8) -> Tensor:
    """B×cell²×h×w log-probability that a cell draws a pixel and keeps it; of B×1×H×W scores.

    The softmax over the cell, times the sigmoid of the pixel's score; scores of a softplus keep half or more.
    """
    cells = to_cells(scores, cell)
    return cells.log_softmax(1) + F.logsigmoid(cells)


@torch.no_grad()
def draw_actions(policy: Tensor) -> Tensor:
    """B×h×w int64: the pixel that each cell draws by B×C×h×w log-probabilities; C where it draws none."""
    below = torch.rand_like(policy[:, :1])
    return (policy.exp().cumsum(1) <= below).sum(1)


def drawn_points(
    policy: Tensor, actions: Tensor, mask: Tensor, cell: int = 8, origin: tuple[int, int] = (0, 0)
) -> Drawn:
    """The points of ``draw_actions``; those that the B×H×W `mask` does not show are not accepted.

    origin: x, y of the pixel where the first cell begins.
    """
    rows, columns = actions.shape[-2:]
    where = actions.clamp_max(cell * cell - 1)
    corners = pixel_grid(rows, columns, policy.device) * cell + torch.tensor(origin, device=policy.device)
    points = (corners + torch.stack([where % cell, where // cell], -1)).flatten(1, 2)
    accepted = (actions < cell * cell).flatten(1) & shown_at(mask, points)
    chosen = policy.gather(1, where[:, None])[:, 0].flatten(1)
    return Drawn(points, accepted, torch.where(accepted, chosen, 0))


def policy_gradient_loss(
    maps0: Tensor, maps1: Tensor, stride: int, drawn0: Drawn, drawn1: Drawn, views: EpipolarViews,
    reward: Reward = REWARD, penalty: float = 0.001, normalise: bool = True,
) -> dict[str, Tensor]:
    """Loss whose gradient is, on average, that of minus the expected reward, as ``loss``.

    maps0, maps1: B×D×h×w descriptors of any length, `stride` pixels a cell; where they have a gradient, the chances of
    matches learn too.  penalty: for each point drawn, so that points that never match die out.
    normalise: divide by the number of points, as the paper does; its code sums.
    Watched: ``reward`` a point, ``points`` a view, ``precision``, the share of matches (mutual nearest) that are right.
    """
    parts = []
    for row in range(len(maps0)):  # as many points as each pair has
        kept = drawn0.accepted[row], drawn1.accepted[row]
        points0, points1 = drawn0.points[row, kept[0]][None], drawn1.points[row, kept[1]][None]
        log_chances = (drawn0.log_probability[row, kept[0]], drawn1.log_probability[row, kept[1]])
        logits = matching_logits(maps0[row, None], maps1[row, None], stride, points0, points1)[0]
        in1, in0 = epipolar_distances(views.fundamental[row, None], points0, points1)
        right = (torch.maximum(in1, in0) < reward.tolerance)[0]
        log_matching = logits.log_softmax(0) + logits.log_softmax(1)
        rewards = torch.where(right, reward.right, reward.wrong)
        loss = reinforce(log_matching, *log_chances, rewards, penalty)
        count = len(points0[0]) + len(points1[0])
        with torch.no_grad():
            gained = (rewards * log_matching.exp()).sum() / max(count, 1)
            mutual = mutual_nearest(logits)
            precision = (mutual & right).sum() / mutual.sum().clamp_min(1)
        parts.append(torch.stack([loss / max(count, 1) if normalise else loss, gained,
                                  torch.full_like(gained, count / 2), precision]))
    loss, gained, count, precision = torch.stack(parts).mean(0)
    return {"loss": loss, "reward": gained.detach(), "points": count.detach(), "precision": precision.detach()}


def reinforce(
    log_matching: Tensor, log_chances0: Tensor, log_chances1: Tensor, rewards: Tensor, penalty: float
) -> Tensor:
    """−Σ R·P·(log P + log p_i + log p_j) + penalty·Σ log p, the factors R·P without gradient.

    log_matching: N×M log P of each match.  log_chances0, log_chances1: N and M, log p of the points that were drawn.
    rewards: N×M R.  The expectation of its gradient over draws is that of −Σ R·P + penalty·(points drawn), where P of a
    match depends on its own two points alone; what the others' presence does to P is left out, as in DISK.
    """
    gains = rewards * log_matching.detach().exp()
    # Two sums of the gains serve instead of two more matrices.
    gained = (gains * log_matching).sum() + gains.sum(1) @ log_chances0 + gains.sum(0) @ log_chances1
    return penalty * (log_chances0.sum() + log_chances1.sum()) - gained


def matching_logits(maps0: Tensor, maps1: Tensor, stride: int, points0: Tensor, points1: Tensor) -> Tensor:
    """B×N×M: 60·cosine of the descriptors at B×N×2 and B×M×2 points."""
    first, second = (F.normalize(sample(maps, points, stride), dim=-1)
                     for maps, points in ((maps0, points0), (maps1, points1)))
    return SHARPNESS * first @ second.mT


def mutual_nearest(logits: Tensor) -> Tensor:
    """N×M bool: each is the other's best."""
    if not logits.numel():
        return torch.zeros_like(logits, dtype=torch.bool)
    return (logits >= logits.amax(1, keepdim=True)) & (logits >= logits.amax(0, keepdim=True))
