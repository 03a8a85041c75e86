"""Procedural scenes rendered ahead of training: scene folders in the cache, made once by all cores."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.progress import progress_bar
from kp_frontend.replay.flight import photographs
from kp_frontend.replay.trajectory import Trajectory, write_tum
from kp_frontend.resources import cache_folder
from kp_training.data.images import Images
from kp_training.data.layouts.sequences import read_ours
from kp_training.data.posed import PosedScene
from kp_training.data.rooms.room import FORMAT, Room, make_room
from kp_training.workers import run_tasks

FRAMES = 160
CHUNK = 16  # frames that a process renders at a time
PERIOD = 1_000_000_000 // 20  # nanoseconds between frames
DEEPEST = 65.535  # metres, what 16 bits of millimetres hold
COST = 0.8e-6  # seconds a pixel and core, for the estimate that is said before a long wait
LEAST_SIDE = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RoomFrames:
    """What is rendered.

    height, width: of the frames in pixels.  frames: of each scene.  seed, held_out: as in `make_room`.
    images: photographs on the scenes' surfaces; None means scikit-image's, and made pictures where it is missing.
    exact: without loss, images as PNG and depth as .npy; else JPEG, and PNG in millimetres with nothing beyond 65 m.
    """

    height: int
    width: int
    frames: int = FRAMES
    seed: int = 0
    held_out: bool = False
    images: Images | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width) < LEAST_SIDE or self.frames < 2:
            raise InputError(f"{self.frames} frames of {self.width}×{self.height} are too few or too small; expected "
                             f"2 frames of {LEAST_SIDE} pixels a side at least")

    @functools.cached_property
    def key(self) -> str:
        """Of all that determines the pixels of a frame."""
        images = self.images.identity if self.images is not None else f"scikit-image:{len(_own_photographs())}"
        every = (FORMAT, self.height, self.width, self.frames, self.seed, self.held_out, images, self.exact)
        return f"{self.width}x{self.height}-" + hashlib.sha256(repr(every).encode()).hexdigest()[:16]

    def room(self, number: int) -> Room:
        """Scene `number`."""
        photos = _own_photographs() if self.images is None else self.images
        return make_room(self.seed, number, photos, self.held_out)


def open_rooms(
    count: int, height: int, width: int, seed: int = 0, held_out: bool = False, frames: int = FRAMES,
    images: Images | None = None,
) -> list[PosedScene]:
    """The first `count` procedural scenes of `frames` views each at height×width, metric, ordered, with depth.

    held_out: another series of scenes, never trained on.  images: photographs on their surfaces (default: those in
    scikit-image).  Scenes that the cache lacks are rendered first, by all cores; what was begun is gone on with.
    Raises InputError where they cannot be written.
    """
    recipe = RoomFrames(height, width, frames, seed, held_out, images)
    folder = cache_folder("rooms") / recipe.key
    return [read_ours(scene, f"{folder.name}/{scene.name}") for scene in write_rooms(folder, count, recipe)]


def write_rooms(folder: Path, count: int, recipe: RoomFrames, jobs: int | None = None) -> list[Path]:
    """The first `count` scenes as scene folders of our layout under `folder`; those that are there stay.

    jobs: processes, default: one a core.  A scene folder is there only when it is complete.
    """
    scenes = [folder / f"room-{number:04d}" for number in range(count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if all(scene.is_dir() for scene in scenes):
            return scenes
        with _alone(folder / ".lock"):
            _render_missing(scenes, recipe, jobs or len(os.sched_getaffinity(0)))
    except OSError as error:
        raise InputError(f"cannot write {error.filename or folder} ({error.strerror}); make room there, or set "
                         "KP_FRONTEND_CACHE to another folder") from error
    return scenes


def _render_missing(scenes: Sequence[Path], recipe: RoomFrames, jobs: int) -> None:
    """Render the frames that are missing, chunk by chunk in `jobs` processes, and complete their scenes."""
    missing = [number for number, scene in enumerate(scenes) if not scene.is_dir()]
    tasks = [Chunk(number, _partial(scenes[number]), start, min(start + CHUNK, recipe.frames))
             for number in missing for start in range(0, recipe.frames, CHUNK)]
    tasks = [task for task in tasks if not all(_image(task.folder, k, recipe.exact).is_file() for k in task.frames)]
    frames = sum(len(task.frames) for task in tasks)
    if not missing:
        return
    jobs = max(1, min(jobs, len(tasks)))
    seconds = math.ceil(frames * recipe.height * recipe.width * COST / jobs)
    print(f"rendering {len(missing)} scenes, {frames} frames of {recipe.width}×{recipe.height}, once: about "
          f"{seconds} s on {jobs} cores; kept in {scenes[0].parent}", flush=True)
    left = Counter(task.number for task in tasks)
    for number in set(missing) - set(left):
        _complete(recipe, number, scenes[number])
    with progress_bar("rendering scenes", frames) as bar:
        for which, done in run_tasks(RenderChunk(recipe), tasks, jobs):
            bar.advance(done)
            number = tasks[which].number
            left[number] -= 1
            if not left[number]:
                _complete(recipe, number, scenes[number])


@dataclass(frozen=True)
class Chunk:
    """Frames `start` to `end` (excluded) of scene `number`, written into `folder`."""

    number: int
    folder: Path
    start: int
    end: int

    @property
    def frames(self) -> range:
        return range(self.start, self.end)


@dataclass(frozen=True, eq=False)
class RenderChunk:
    """Renders the frames of a chunk that are not there yet; travels to other processes."""

    recipe: RoomFrames

    def __call__(self, chunk: Chunk) -> int:
        """Number of frames of the chunk."""
        recipe, room = self.recipe, _room(self.recipe, chunk.number)
        camera, poses = room.camera(recipe.height, recipe.width), room.poses(recipe.frames)
        for kind in ("rgb", "depth"):
            (chunk.folder / kind).mkdir(parents=True, exist_ok=True)
        for number in chunk.frames:
            target = _image(chunk.folder, number, recipe.exact)
            if not target.is_file():
                image, depth = room.frame(number, poses[number], camera)
                _save_depth(chunk.folder / "depth" / f"{number:06d}", depth, recipe.exact)
                with written_whole(target) as beside:  # last of all: where it is, the frame is complete
                    _write_image(beside, image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        return len(chunk.frames)


@functools.lru_cache(maxsize=2)
def _room(recipe: RoomFrames, number: int) -> Room:
    return recipe.room(number)


@functools.cache
def _own_photographs() -> Sequence[np.ndarray]:
    """Scikit-image's photographs; nothing where it is not installed."""
    try:
        return tuple(photographs().values())
    except InputError:
        log.warning("scikit-image is not installed: surfaces of rendered scenes have made pictures only")
        return ()


def _image(folder: Path, number: int, exact: bool) -> Path:
    return folder / "rgb" / f"{number:06d}{'.png' if exact else '.jpg'}"


def _partial(scene: Path) -> Path:
    return scene.with_name(f".{scene.name}.partial")


def _save_depth(path: Path, depth: np.ndarray, exact: bool) -> None:
    """H×W float32 metres to `path` with the suffix of its kind."""
    if exact:
        np.save(path.with_suffix(".npy"), depth)
        return
    millimetres = np.rint(np.where(depth <= DEEPEST, depth, 0) * 1000).astype(np.uint16)
    _write_image(path.with_suffix(".png"), millimetres, [cv2.IMWRITE_PNG_COMPRESSION, 2])


def _write_image(path: Path, image: np.ndarray, options: list[int]) -> None:
    """Write `image`; OSError, where OpenCV would only say False."""
    coded = cv2.imencode(path.suffix, image, options)[1]
    path.write_bytes(coded.tobytes())


def _complete(recipe: RoomFrames, number: int, scene: Path) -> None:
    """Write the numbers of a scene whose frames are all there, and give it its name."""
    partial, room = _partial(scene), _room(recipe, number)
    matrix = room.camera(recipe.height, recipe.width).matrix
    values = dict(zip(("fx", "fy", "cx", "cy"), matrix[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()))
    values |= {"width": recipe.width, "height": recipe.height, "depth_type": "z"}
    (partial / "intrinsics.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    stamps = np.arange(1, recipe.frames + 1, dtype=np.int64) * PERIOD
    write_tum(partial / "poses.txt", Trajectory(stamps, room.poses(recipe.frames)))
    for left in (partial / "rgb").glob(".*"):
        left.unlink()
    shutil.rmtree(scene, ignore_errors=True)
    partial.replace(scene)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here; a process that ends, in whatever way, is out."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process renders the same scenes into {path.parent}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
