"""Scenes to learn from, after a look at recordings: whoever skipped ``check_scene`` hears of wrong poses here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from kp_frontend.errors import InputError
from kp_training.data import open_scenes, training_scenes
from kp_training.data.posed import PosedScene, evenly
from kp_training.evaluation.scene_check.check import check_scene

LOOKED_AT = 4
"""Scenes, evenly spread."""
STRIDES = (1, 10)
HOPELESS = 0.5
"""Share that agrees below which a mistake that explains the rest is an error; above, it is worth a warning."""

log = logging.getLogger(__name__)


def checked_scenes(specs: Sequence[str], height: int, width: int) -> list[PosedScene]:
    """``training_scenes``; some of ``posed:PATH`` are checked, once in a process, and a warning says what is wrong.

    Raises InputError for one that is read in another convention than the one that explains what its frames show.
    """
    scenes = training_scenes(specs, height, width)
    recordings = tuple(spec for spec in specs if spec.startswith("posed:"))
    if recordings:
        _look_at(recordings)
    return scenes


@functools.cache
def _look_at(specs: tuple[str, ...]) -> None:
    scenes = open_scenes(specs, 0, 0)
    for number in evenly(len(scenes), LOOKED_AT):
        if len(scenes[number]) > 1:
            _check(scenes[number])


def _check(scene: PosedScene) -> None:
    found = check_scene(scene, STRIDES)
    if found.mistake and found.agree < HOPELESS:
        raise InputError(f"{scene.name}: {found.verdict}; see kp_training check_scene")
    if not found.good:
        log.warning("%s: %s; see kp_training check_scene", scene.name, found.verdict)
