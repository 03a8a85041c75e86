"""Training data: where photographs come from (``IMAGE_SOURCES``), where posed scenes do (``SCENE_SOURCES``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.images import Images, Joined, Readable
from kp_training.data.layouts import open_posed
from kp_training.data.photos import PhotoFolder, is_held_out
from kp_training.data.posed import PosedScene, SceneFrames
from kp_training.data.procedural import ProceduralImages
from kp_training.data.rooms.source import open_rooms

ROOMS = 6

IMAGE_SOURCES = {
    "photos": lambda argument, held_out: PhotoFolder(argument, held_out),
    "procedural": lambda argument, held_out: ProceduralImages(_count("procedural", argument, 400), held_out=held_out),
}
SCENE_SOURCES = {
    "posed": lambda argument, height, width, photos: _posed(argument),
    "rooms": lambda argument, height, width, photos: open_rooms(_count("rooms", argument, ROOMS), height, width,
                                                                images=photos),
}


def open_images(specs: Sequence[str], held_out: bool = False) -> Images:
    """Photographs of each spec ``photos:FOLDER`` or ``procedural[:COUNT]``, joined.

    Without such a spec, the frames of each ``posed:PATH``; without those either, ``procedural``.
    Raises InputError for an unknown kind or an unusable folder.
    """
    found = [IMAGE_SOURCES[kind](argument, held_out) for kind, argument in _parse(specs) if kind in IMAGE_SOURCES]
    scenes = [scene for kind, argument in _parse(specs) if kind == "posed" for scene in _posed(argument)]
    if not found and scenes:
        parts = [_part(scene, held_out) for scene in scenes]
        if not any(map(len, parts)):
            raise InputError(f"{sum(map(len, scenes))} frames are too few to keep some of them from training")
        return Readable(SceneFrames(parts))
    sources = found or [IMAGE_SOURCES["procedural"]("", held_out)]
    return sources[0] if len(sources) == 1 else Joined(sources)


def open_scenes(specs: Sequence[str], height: int, width: int) -> list[PosedScene]:
    """Scenes of each spec ``posed:PATH`` or ``rooms[:COUNT]``; without one, ``rooms``.

    Rooms are rendered at height×width, with the photographs of each ``photos:FOLDER`` on their walls.
    Raises InputError as `open_images` does.
    """
    return [scene for _, scene in _scenes(specs, height, width)]


def training_scenes(specs: Sequence[str], height: int, width: int) -> list[PosedScene]:
    """`open_scenes` without the frames that `open_images` holds out of them, where there are no photographs."""
    parted = () if any(kind in IMAGE_SOURCES for kind, _ in _parse(specs)) else ("posed",)
    parts = [_part(scene, held_out=False) if kind in parted else scene for kind, scene in _scenes(specs, height, width)]
    return [scene for scene in parts if len(scene)]


def _scenes(specs: Sequence[str], height: int, width: int) -> list[tuple[str, PosedScene]]:
    """See `open_scenes`; each with the kind of its spec."""
    photos = [spec for spec in specs if spec.startswith("photos:")]
    walls = open_images(photos) if photos else None
    given = [(kind, argument) for kind, argument in _parse(specs) if kind in SCENE_SOURCES] or [("rooms", "")]
    return [(kind, scene) for kind, argument in given for scene in SCENE_SOURCES[kind](argument, height, width, walls)]


def _part(scene: PosedScene, held_out: bool) -> PosedScene:
    """Frames for training, or the tenth that is kept from it, though its neighbours are not."""
    chosen = [k for k, name in enumerate(scene.names) if is_held_out(f"{scene.name}/{name}") == held_out]
    return scene.choose(np.array(chosen, np.int64), "[held out]" if held_out else "[trained on]")


@functools.cache
def _posed(path: str) -> list[PosedScene]:
    """Looked through, and warned about, once."""
    return open_posed(path)


def _parse(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Kind and argument of each ``KIND:ARGUMENT``."""
    parsed = [(kind, argument) for kind, _, argument in (spec.partition(":") for spec in specs)]
    for kind, _ in parsed:
        if kind not in IMAGE_SOURCES | SCENE_SOURCES:
            raise unknown_name("data source", kind, [*IMAGE_SOURCES, *SCENE_SOURCES])
    return parsed


def _count(kind: str, argument: str, default: int) -> int:
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise InputError(f"{kind}:{argument}: expected a number of 1 or more, as in {kind}:{default}")
    return int(argument or default)
