"""Which two frames of a scene make a pair: by what both see, by how far apart they are in time, or by pose alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.resources import cache_folder
from kp_training.data.overlap import depth_overlap, pose_overlap, scene_distance
from kp_training.data.posed import PosedScene, evenly

if TYPE_CHECKING:
    from kp_training.data.posed_pairs import PosedPairConfig

MOST_FRAMES = 1500
"""Of a scene, evenly spread, of which the overlap of all pairs is computed."""
LOOKED_AT = 16
"""Pairs by offset of which some must see the same."""

Chosen = tuple[np.ndarray, str]
"""P×2 int32 frames of a scene that go together, and why there are none where there are none."""


def _by_overlap(scene: PosedScene, config: PosedPairConfig) -> Chosen:
    if not scene.has_depth:
        raise InputError(f"{scene.name} has no depth, which choice=overlap needs; use choice=rotation or choice=offset")
    frames = _spread(len(scene))
    overlap = depth_overlap(scene, frames, cache_folder("overlap"))
    mutual = np.minimum(overlap, overlap.T)
    met = (mutual >= config.least_overlap) & (mutual <= config.most_overlap)
    pairs = _pairs_where(met & _apart(scene.poses[frames], config), frames)
    others = mutual[~np.eye(len(frames), dtype=bool)]
    seen = f"{others.min():.0%} to {others.max():.0%}" if len(others) else "that of no two"
    return pairs, (f"the overlap of its frames is {seen}, expected {config.least_overlap:.0%} to "
                   f"{config.most_overlap:.0%} (least_overlap, most_overlap){_distance_asked(config)}")


def _by_offset(scene: PosedScene, config: PosedPairConfig) -> Chosen:
    if not scene.ordered:
        raise InputError(f"the frames of {scene.name} are in no order, which choice=offset needs; use choice=overlap "
                         "or choice=rotation")
    last = len(scene) - 1
    shorter = min(1.0, last / config.most_offset)
    offsets = np.arange(max(1, round(config.least_offset * shorter)), round(config.most_offset * shorter) + 1)
    first = np.arange(len(scene))[:, None]
    second = first + offsets
    pairs = np.column_stack([np.broadcast_to(first, second.shape)[second <= last], second[second <= last]])
    if len(pairs) and scene.has_depth and not _share_anything(scene, pairs):
        return pairs[:0].astype(np.int32), (f"frames {offsets[0]} to {offsets[-1]} apart see nothing of each other by "
                                            "their depth (are the poses and the unit of depth right?)")
    return pairs.astype(np.int32), f"it has {len(scene)} frames, expected 2 or more"


def _share_anything(scene: PosedScene, pairs: np.ndarray) -> bool:
    """Whether of some P×2 pairs of frames, evenly spread, any two see the same by depth."""
    some = pairs[evenly(len(pairs), LOOKED_AT)]
    frames, places = np.unique(some, return_inverse=True)
    overlap = depth_overlap(scene, frames, cache_folder("overlap"))
    first, second = places.reshape(-1, 2).T
    return bool((np.minimum(overlap, overlap.T)[first, second] > 0).any())


def _by_rotation(scene: PosedScene, config: PosedPairConfig) -> Chosen:
    frames = _spread(len(scene))
    poses = scene.poses[frames]
    axes = poses[:, :3, 2]
    turned = axes @ axes.T >= np.cos(np.radians(config.largest_rotation)) - 1e-9
    overlap = pose_overlap(scene, frames)
    met = turned & (np.minimum(overlap, overlap.T) >= config.least_overlap)
    pairs = _pairs_where(met & _apart(poses, config), frames)
    others = ~np.eye(len(frames), dtype=bool)
    return pairs, (f"of its {others.sum() // 2} pairs, {(turned & others).sum() // 2} look within "
                   f"{config.largest_rotation:g}° of each other (largest_rotation) and {(met & others).sum() // 2} of "
                   f"these may share {config.least_overlap:.0%} of what they see (least_overlap)"
                   f"{_distance_asked(config)}")


def _apart(poses: np.ndarray, config: PosedPairConfig) -> np.ndarray:
    """M×M bool: which of M×4×4 cameras have parallax."""
    distances = np.linalg.norm(poses[:, None, :3, 3] - poses[:, :3, 3], axis=-1)
    return distances >= config.least_parallax * scene_distance(poses)


def _distance_asked(config: PosedPairConfig) -> str:
    return (f"; cameras must be {config.least_parallax:.0%} of the scene's distance apart (least_parallax)"
            if config.least_parallax else "")


def _spread(count: int) -> np.ndarray:
    """At most MOST_FRAMES of so many frames, evenly spread."""
    return evenly(count, MOST_FRAMES)


def _pairs_where(together: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """P×2 int32 frames, of each two of which M×M symmetric `together` holds."""
    return frames[np.column_stack(np.nonzero(np.triu(together, 1)))].astype(np.int32)


def choice_for(scenes: Sequence[PosedScene], choice: str) -> str:
    """A name in CHOICES; for ``auto`` PrP's, offset, where all scenes are in order, and overlap elsewhere."""
    if choice != "auto":
        return choice
    return "offset" if all(scene.ordered for scene in scenes) else "overlap"


CHOICES = {"overlap": _by_overlap, "offset": _by_offset, "rotation": _by_rotation}
"""Name → the pairs of a scene's frames that a PosedPairConfig asks for."""
