"""Scenes of posed views from whatever they are stored as: one row a layout, recognised by what lies in the folder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.replay.scene_files import IMAGE_SUFFIXES
from kp_training.data.layouts.bags import SUFFIXES, bags_without_metadata, read_bag
from kp_training.data.layouts.multiview import read_blended_mvs, read_colmap
from kp_training.data.layouts.nerf import TRANSFORMS, read_nerf, read_transforms
from kp_training.data.layouts.rgbd import read_scannet, read_seven_scenes
from kp_training.data.layouts.sequences import read_ours, read_sequence
from kp_training.data.posed import PosedScene

DEPTH_OF_FOLDERS = 4  # how far below the folder that was given scenes are looked for
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How a layout is recognised, and read.

    markers: patterns, one of which must find something in the folder, and so must `beside` where it is given.
    read: folder, name for people → its scene, or scenes.
    """

    markers: tuple[str, ...]
    read: Callable[[Path, str], PosedScene | list[PosedScene]]
    beside: str | None = None

    def matches(self, folder: Path) -> bool:
        """Whether `folder` is a scene of this layout."""
        found = any(next(folder.glob(marker), None) is not None for marker in self.markers)
        return found and (self.beside is None or (folder / self.beside).exists())


# Ordered: the first that matches is taken, so that the more telling markers come first.
LAYOUTS = {
    "tum_rgbd": Layout(("rgb.txt",), functools.partial(read_sequence, "tum_rgbd")),
    "kitti": Layout(("image_0", "image_2", "calib.txt"), functools.partial(read_sequence, "kitti")),
    "euroc": Layout(("mav0", "cam0"), functools.partial(read_sequence, "euroc")),
    "new_tsukuba": Layout(("illumination",), functools.partial(read_sequence, "new_tsukuba")),
    "nerf": Layout(("NeRF/camera_transforms", "camera_transforms"), read_nerf),
    "blended_mvs": Layout(("blended_images",), read_blended_mvs),
    "seven_scenes": Layout(("frame-*.color.png", "frame-*.color.jpg"), read_seven_scenes),
    "scannet": Layout(("color",), read_scannet, beside="pose"),
    "transforms": Layout(TRANSFORMS, read_transforms),
    "megadepth": Layout(("depths",), read_colmap),
    "scene": Layout(("rgb",), read_ours),
    "colmap": Layout(("sparse", "images.txt", "images.bin"), read_colmap, beside="images"),
    "bag": Layout(("metadata.yaml",), read_bag),  # and bags_without_metadata
}


def open_posed(path: str | Path, layout: str | None = None) -> list[PosedScene]:
    """Scenes of `path`: a scene folder of any of LAYOUTS, a folder that holds such, or a bag.

    layout: None means by the files that are there.  Scenes that cannot be used are left out of a folder of several,
    with a warning each.  Raises InputError where none is left, and for what is no scene at all.
    """
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    source = Path(path).expanduser()
    if source.is_file():
        return _open_one(source, layout or _layout_of_file(source), source.stem)
    if not source.is_dir():
        raise InputError(f"no folder {source}; give a scene folder, a folder of such, or a bag")
    found = list(_find(source, layout, DEPTH_OF_FOLDERS))
    if layout is not None and not found:
        found = [(source, layout)]  # its reader says what is missing
    if not found and any(path.suffix.lower() in IMAGE_SUFFIXES for path in source.iterdir()):
        raise InputError(f"{source} holds images, but no poses with them; as photographs they are photos:{source}, for "
                         "a method that learns from single images")
    if not found:
        looked = "; ".join(f"{name}: {' or '.join(row.markers)}{f' beside {row.beside}' if row.beside else ''}"
                           for name, row in LAYOUTS.items())
        raise InputError(f"{source} holds no posed scene that we know; looked for ({looked}, {', '.join(SUFFIXES)})")
    if len(found) == 1 and found[0][0] == source:
        return _open_one(source, found[0][1], source.resolve().name)
    return _open_several(source, found)


def _open_several(source: Path, found: list[tuple[Path, str]]) -> list[PosedScene]:
    scenes: list[PosedScene] = []
    errors = []
    for folder, name in found:
        try:
            scenes += _open_one(folder, name, str(folder.relative_to(source)))
        except InputError as error:
            errors.append(error)
    if not scenes:
        raise InputError(f"{source}: not one of {len(found)} scenes can be used; the first: {errors[0]}")
    for error in errors:
        log.warning("left out a scene: %s", error)
    return scenes


def _open_one(folder: Path, layout: str, name: str) -> list[PosedScene]:
    scenes = LAYOUTS[layout].read(folder, name)
    return scenes if isinstance(scenes, list) else [scenes]


def _find(folder: Path, layout: str | None, depth: int) -> Iterator[tuple[Path, str]]:
    """Scene folders at and below `folder`, in the order of their names, and the layout of each."""
    for name, row in LAYOUTS.items():
        if layout in (None, name) and row.matches(folder):
            yield folder, name
            return
    if layout in (None, "bag"):
        yield from ((bag, "bag") for bag in bags_without_metadata(folder))
    if depth:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _find(below, layout, depth - 1)


def _layout_of_file(source: Path) -> str:
    if source.suffix in SUFFIXES:
        return "bag"
    if source.suffix == ".json":
        return "transforms"
    if source.suffix.lower() in ARCHIVES:
        raise InputError(f"{source} is an archive; unpack it first")
    raise InputError(f"{source} is no scene: expected a folder, a bag ({', '.join(SUFFIXES)}) or a transforms.json")
