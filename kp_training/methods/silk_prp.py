"""SiLK by point re-projection: its two views are of a scene from two places instead of a photograph and its warp.

"NeRF-supervised feature point detection and description", with the numbers of its public code (METHODS.md section 3).
Where a pixel lies in the other view is known by its depth and the relative pose, to the nearest surface at edges
(``Reprojection``); the rest is SiLK's: network, InfoNCE over all pixels, a detector that learns which of them find
each other, photometric set A.  Views are far apart (70 to 149 frames of a moving camera), at the full size of the
paper's renders.  Pixels hidden from the second camera or behind it are no pairs; the code does not ask.

``aug`` turns and zooms the second view too, since cameras that are moved by people hardly roll.  ``network=compact``
learns from posed views what it learns from photographs in ``silk``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.pair_choice import CHOICES, choice_for
from kp_training.data.pairs import PairBatch
from kp_training.data.posed import SceneFrames, need_depth
from kp_training.data.posed_pairs import PosedBatch, PosedPairConfig, PosedPairs
from kp_training.methods.base import Context, Run
from kp_training.methods.silk import PAPER_CHANNELS, REDUCED_POSITIONS, SharedConfig, Silk
from kp_training.settings import check_closest

PAPER_SIDES = (480, 640)
REDUCED_SIDES = (240, 320)
COMPACT_SIDES = (192, 256)
COMPACT_CLOSEST = 2.0
AUG_SHARE = 0.7
LEAST_PRECISION = 0.25


@dataclass(frozen=True)
class SilkPrpConfig(SharedConfig):
    """Settings of SiLK-PrP; ``auto``, and 0 where it says so, follow the network.

    choice: of the pairs of frames, see PosedPairConfig: ``offset``, ``overlap`` or ``rotation``; auto is the paper's
    offset where the frames of all scenes are in order, and overlap elsewhere.  least_offset, most_offset: in frames.
    aug: the paper's Aug; 7 of 10 second views are zoomed by 0.7 to 1.3 and rolled by up to 90° either way.
    closest: see PosedPairConfig; frames are rendered as much larger.  0 = 2 for compact, so that its views are as sharp
    as what it will meet, and 1, the paper's.
    skip_poor: steps count nothing in which no pair's two pixels are each other's best match, or fewer than 1 in 4 of
    those that the detector calls keypoints are.  The public code does so by figures that do not ask whether a match is
    right.  These do, and no step would count of a network that knows nothing yet; hence off.  Silk only.
    height, width: of the views in pixels; 0 = the paper's 480×640, 240×320 for fewer channels and on a CPU, where a
    step of the paper's takes a minute and more, and 192×256 for compact.
    positions: so many pixels of a pair, drawn anew at each step, look for themselves among all of the other view, an
    unbiased estimate of the loss of all; −1 = all that both views show, as in the paper; 0 = all, but 512 for fewer
    channels and on a CPU, which all of 480×640 take most of an hour a step.
    style: auto is ``silk``, the paper's set A, and ``camera`` for compact.
    network, channels, padding, block, recompute, temperature, and what compact has beside them: see SilkConfig.  A
    pair of 480×640 takes about 8 GB, with recompute half of that.
    """

    choice: str = "auto"
    least_offset: int = 70
    most_offset: int = 149
    aug: bool = False
    closest: float = 0.0
    skip_poor: bool = False

    def __post_init__(self) -> None:
        if self.choice not in ("auto", *CHOICES):
            raise unknown_name("choice of pairs", self.choice, ["auto", *CHOICES])
        if not 1 <= self.least_offset <= self.most_offset:
            raise InputError(f"least_offset={self.least_offset}, most_offset={self.most_offset}: expected at least 1 "
                             "and no less than that")
        check_closest(self)
        if self.skip_poor and self.network != "silk":
            raise InputError(f"skip_poor=true: expected network=silk with it, got network={self.network}")


class SilkPrp(Silk):
    """See the module; raises InputError for a network or a size that does not exist."""

    Config = SilkPrpConfig
    config: SilkPrpConfig

    def __init__(self, config: SilkPrpConfig) -> None:
        super().__init__(config)
        self.variant = f"{self.kind.variant}-aug" if config.aug else self.kind.variant

    def pairs(self, context: Context) -> PosedPairs:
        """Two frames of a scene; raises InputError where a scene has no depth."""
        config = self.config
        sides = COMPACT_SIDES if self.kind.corners else PAPER_SIDES if self._whole(context.device) else REDUCED_SIDES
        height, width = config.height or sides[0], config.width or sides[1]
        closest = config.closest or (COMPACT_CLOSEST if self.kind.corners else 1.0)
        scenes = context.scenes(round(closest * height), round(closest * width))
        need_depth(scenes, "by which pixels are found in the other view")
        pairs = PosedPairConfig(
            choice=choice_for(scenes, config.choice), least_offset=config.least_offset, most_offset=config.most_offset,
            style=self.style, height=height, width=width, closest=closest,
            view_share=AUG_SHARE if config.aug else 0.0,
        )
        return PosedPairs(scenes, pairs, context.seed, self.corners(SceneFrames(scenes), context.cache))

    def losses(self, run: Run, network: nn.Module, batch: PairBatch | PosedBatch) -> dict[str, Tensor]:
        """SiLK's."""
        config = self.config
        count = config.positions or (-1 if self._whole(batch.image0.device) else REDUCED_POSITIONS)
        found = self.kind.losses(replace(config, positions=count), run, network, batch)
        if config.skip_poor:
            found["loss"] = found["loss"] * worth_a_step(found["matched"], found["precision"])
        return found

    def _whole(self, device: torch.device) -> bool:
        """Whether auto is what the paper trained."""
        return self.config.channels == PAPER_CHANNELS and device.type != "cpu"


def worth_a_step(matched: Tensor, precision: Tensor) -> Tensor:
    """Scalar bool: whether a step of so many matched pairs, and of so many among the called ones, should count.

    Its loss counts 0 and is not left out, so that processes agree; Adam still moves by what it remembers.
    """
    return torch.logical_and(matched > 0, precision >= LEAST_PRECISION)
