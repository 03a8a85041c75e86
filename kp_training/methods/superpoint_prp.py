"""SuperPoint-PrP: SuperPoint whose second views are other frames of a scene, found by depth and pose.

"NeRF-supervised feature point detection and description", with the numbers of its public code where they differ from
the paper's (METHODS.md section 3).  SuperPoint's stages stay, and so do its networks and losses; what changes is where
labels and pairs come from:

- ``magicpoint``: a detector learns the corners of synthetic shapes.
- ``round1``, ``round2``: the last detector labels frames by projective adaptation, a new one learns them under other
  light; no homography is drawn any more.
- ``joint``: the last detector's labels, and descriptors of two frames far apart, in one network.

With ``hyb`` the rounds are SuperPoint's own, by homographic adaptation on photographs, and their last detector labels
the frames of the joint stage, here by projective adaptation as well (how they do is not stated).  The runtime samples
descriptors bilinearly, where the code enlarges their map bicubically.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from kp_frontend.errors import InputError
from kp_training.augment import STYLES
from kp_training.data.pair_choice import CHOICES, choice_for
from kp_training.data.posed import PosedScene, need_depth
from kp_training.data.posed_pairs import PosedPairConfig, PosedPairs
from kp_training.labels.projective import PURPOSE, ProjectiveConfig, label_scenes
from kp_training.methods.base import Context, Decoding, Stage
from kp_training.methods.superpoint import KINDS, SuperPoint, SuperPointConfig, check_ranges
from kp_training.settings import check_closest, check_names

FEWEST_LABELLED = 40
VIEWS = {"superpoint": ((480, 640), (240, 320)), "compact": ((192, 256), (192, 256))}
"""Height and width of the joint stage's views and the rounds'.  For the paper's network the joint stage's are the
paper's; the rounds' are not stated: 32 images of SuperPoint's size."""
CLOSEST = {"superpoint": 1.0, "compact": 2.0}

SIDES = ("height", "width", "round_height", "round_width", "adapt_height", "adapt_width")
LEASTS = {"rounds": 0, "group": 1, "others": 0, "least_offset": 1, "most_offset": 1, "warps": 1, "adapt_fewest": 0,
          "adapt_points": 1, "adapt_limit": 0}


@dataclass(frozen=True)
class SuperPointPrpConfig:
    """Settings of SuperPoint-PrP.

    network: ``superpoint`` or ``compact``.  norm: of superpoint's layers, see ``networks.superpoint``.
    rounds: how many detectors learn from the labels of the one before; the last labels for the joint stage.
    hyb: they learn photographs, by homographic adaptation, instead of posed frames.
    warm: each stage starts from the one before, which the paper's do not; a short run learns more with it.
    teacher: see SuperPointConfig.
    descriptor_loss: ``prp``, or one of superpoint's.
    choice: of pairs, see PosedPairConfig: ``offset`` is the paper's, ``overlap`` is for frames that are in no order;
        auto takes the first where all scenes are ordered.  least_offset, most_offset: frames.  style: of their light.
    height, width: of the joint stage's views, round_height, round_width: of the rounds', 0 = auto.
    closest: see PosedPairConfig; frames are rendered, and labelled, as much larger than the joint stage's views.  0 = 2
        for compact, so that its views are as sharp as what it will meet, and 1, the paper's.
    average, group, others: see ProjectiveConfig.  average: ``normalised`` is ours, ``patches`` the paper's, ``public``
        the public code's with its defect.
    adapt_threshold, adapt_fewest, adapt_points, adapt_height, adapt_width: see LabelConfig; of the last two 0 = auto,
        as of the frames, and with hyb SuperPoint's for photographs.
    adapt_limit: at most so many frames (with hyb, also photographs) are labelled.  0: as many as a third of the time
        of the stage's training is enough for; with the paper's steps, all.
    warps: with hyb, see AdaptationConfig.
    """

    network: str = "superpoint"
    norm: str = "prp"
    rounds: int = 2
    hyb: bool = False
    warm: bool = False
    teacher: str = ""
    descriptor_loss: str = "prp"
    choice: str = "auto"
    least_offset: int = 70
    most_offset: int = 149
    style: str = "prp"
    height: int = 0
    width: int = 0
    round_height: int = 0
    round_width: int = 0
    closest: float = 0.0
    average: str = "normalised"
    group: int = 20
    others: int = 14
    adapt_height: int = 0
    adapt_width: int = 0
    adapt_threshold: float = 0.015
    adapt_fewest: int = 100
    adapt_points: int = 600
    adapt_limit: int = 0
    warps: int = 100


class SuperPointPrp:
    """See the module; raises InputError for settings that do not exist or do not fit."""

    Config = SuperPointPrpConfig

    def __init__(self, config: SuperPointPrpConfig) -> None:
        check_names(config, {"network": KINDS, "style": STYLES, "choice": ("auto", *CHOICES)}, "superpoint_prp")
        multiple = KINDS[config.network].size_multiple
        check_ranges(config, multiple, SIDES, LEASTS)
        check_closest(config)
        if config.least_offset > config.most_offset:
            raise InputError(f"least_offset={config.least_offset}: expected at most most_offset={config.most_offset}")
        shared = ("network", "norm", "warm", "teacher", "descriptor_loss", "warps", "adapt_threshold", "adapt_fewest",
                  "adapt_points", "adapt_limit")
        settings = {name: getattr(config, name) for name in shared}
        settings |= {name: getattr(config, name) for name in ("adapt_height", "adapt_width") if getattr(config, name)}
        self.superpoint = SuperPoint(SuperPointConfig(
            rounds=config.rounds + 1, height=config.round_height, width=config.round_width, **settings))
        views, round_views = VIEWS[config.network]
        self.views = config.height or views[0], config.width or views[1]
        self.round_views = config.round_height or round_views[0], config.round_width or round_views[1]
        self.closest = config.closest or CLOSEST[config.network]
        self.frames = tuple(round(self.closest * side / multiple) * multiple for side in self.views)
        self.adaptation = ProjectiveConfig(
            height=config.adapt_height or self.frames[0], width=config.adapt_width or self.frames[1], multiple=multiple,
            threshold=config.adapt_threshold, fewest=config.adapt_fewest, points=config.adapt_points,
            group=config.group, others=config.others, average=config.average,
        )
        self.config = config
        self.variant = f"{'hyb' if config.hyb else config.average}-{self.superpoint.variant}"

    def stages(self) -> tuple[Stage, ...]:
        *before, joint = self.superpoint.stages()
        if not before:
            return (replace(joint, dataset=functools.partial(self._pairs, teacher="", size=self.views)),)
        first, *rounds = before
        teachers = [first.name, *(stage.name for stage in rounds)]
        if not self.config.hyb:
            rounds = [replace(stage, dataset=functools.partial(self._pairs, teacher=teacher, size=self.round_views))
                      for teacher, stage in zip(teachers, rounds)]
        pairs = functools.partial(self._pairs, teacher=teachers[-1], size=self.views)
        first = replace(first, dataset=functools.partial(self._look_first, first.dataset))
        return (first, *rounds, replace(joint, dataset=pairs))

    def decoding(self) -> Decoding:
        return self.superpoint.decoding()

    def _look_first(self, dataset: Callable[[Context], Dataset], context: Context) -> Dataset:
        """`dataset`, after it is known that the scenes will do for the stages to come."""
        scenes = context.scenes(*self.frames)
        need_depth(scenes, PURPOSE)
        PosedPairs(scenes, self._choice(scenes, self.views), context.seed)
        return dataset(context)

    def _choice(self, scenes: Sequence[PosedScene], size: tuple[int, int]) -> PosedPairConfig:
        """How pairs of views of `size` are chosen and made."""
        config = self.config
        return PosedPairConfig(
            choice=choice_for(scenes, config.choice), least_offset=config.least_offset, most_offset=config.most_offset,
            style=config.style, height=size[0], width=size[1], closest=self.closest,
        )

    def _pairs(self, context: Context, teacher: str, size: tuple[int, int]) -> Dataset:
        """Pairs of frames, each with the labels that the network of stage `teacher` gave it.

        The paper does not state the labels of the second frame; ours are its own, not the first one's mapped into it.
        """
        detector = self.superpoint.detector(teacher, context)
        # Of one size for all stages: rendered once, and labelled as large as they are.
        scenes = context.scenes(*self.frames)
        scenes, labels = label_scenes(detector, scenes, self._labelled(context.items, size), self.adaptation,
                                      context.seed, context.cache, context.device)
        return PosedPairs(scenes, self._choice(scenes, size), context.seed, labels)

    def _labelled(self, items: int, size: tuple[int, int]) -> int:
        """How many frames to label for `items` pairs of `size`, at two passes (scores, and their mapping) a frame."""
        adapted_height, adapted_width = self.adaptation.size_of(*self.frames)
        affordable = items * size[0] * size[1] // (adapted_height * adapted_width)
        return self.config.adapt_limit or max(FEWEST_LABELLED, affordable)

