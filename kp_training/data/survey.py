"""Which files of a folder are images that training can use: checked in parallel, remembered between runs."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import is_cut_short
from kp_frontend.resources import cache_folder

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
MINIMUM_SIDE = 64
PATIENCE = 2.0  # seconds of checking after which a progress bar appears and the result is worth keeping

log = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """One file: name relative to its folder, size in bytes, time of change in nanoseconds."""

    name: str
    size: int
    changed: int


class Survey(NamedTuple):
    """usable: the images, by name.  left_out: how many others there are, by reason."""

    usable: tuple[ImageFile, ...]
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        every = len(self.usable) + sum(self.left_out.values())
        return ", ".join([f"{every} image files", f"{len(self.usable)} usable", *self.reasons])

    @property
    def reasons(self) -> list[str]:
        """Such as ``2 unreadable``, in the order of the alphabet of the reasons."""
        return [f"{count} {reason}" for reason, count in sorted(self.left_out.items())]


def survey(folder: Path) -> Survey:
    """Every image file under `folder`, with one warning that counts what cannot be used, by reason."""
    return _survey(folder.resolve(), tuple(sorted(_image_files(folder))))


def read_photo(path: Path) -> np.ndarray | None:
    """H×W×3 BGR uint8, upright as EXIF says; of an animation the first frame; None for what is no image.

    More than eight bits are scaled so that the brightest value becomes 255: cameras of 10 to 14 bits fill only
    the lower part of a 16-bit file, and the upper eight bits would show nothing.
    """
    try:
        image = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than OpenCV takes
        return None
    if image is None or image.dtype == np.uint8:
        return image
    finite = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
    return np.clip(finite * (255 / max(finite.max(), 1e-9)) + 0.5, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=8)  # training and validation look at the same folder: check and warn once
def _survey(folder: Path, files: tuple[ImageFile, ...]) -> Survey:
    known = _load(folder)
    fresh = [file for file in files if file not in known]
    start = time.monotonic()
    with _quiet_opencv():
        found = dict(zip(fresh, _check_all(folder, fresh)))
    if time.monotonic() - start > PATIENCE:
        _save(folder, {file: found.get(file, known.get(file)) for file in files})
    known.update(found)
    result = Survey(tuple(file for file in files if not known[file]),
                    Counter(known[file] for file in files if known[file]))
    if result.left_out:
        first = next(file.name for file in files if known[file])
        log.warning("%s: left out %s, of %d image files (the first: %s)",
                    folder, ", ".join(result.reasons), len(files), first)
    return result


def _image_files(folder: Path) -> Iterator[ImageFile]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.suffix.lower() in SUFFIXES:
                stat = path.stat() if path.exists() else os.lstat(path)  # a link to nothing is counted, not met
                yield ImageFile(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns)


def _check_all(folder: Path, files: list[ImageFile]) -> list[str]:
    """Why each file cannot be used, "" where it can."""
    from rich.markup import escape
    from rich.progress import Progress

    start, reasons = time.monotonic(), []
    bar = Progress(transient=True)
    task = bar.add_task(f"checking {escape(folder.name)}", total=len(files))
    try:
        with ThreadPoolExecutor() as pool:  # OpenCV decodes without the interpreter's lock
            for reason in pool.map(lambda file: _fault(folder / file.name), files):
                reasons.append(reason)
                bar.update(task, completed=len(reasons), refresh=False)
                if time.monotonic() - start > PATIENCE and not bar.live.is_started:
                    bar.start()
    finally:
        bar.stop()
    return reasons


def _fault(path: Path) -> str:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return "unreadable"
    if not len(data):
        return "empty"
    if is_cut_short(data):
        return "cut short"
    try:
        image, shrunk = cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8), 8
    except cv2.error:
        return "unreadable"
    if image is None or min(image.shape) < MINIMUM_SIDE / 8 + 2:  # some kinds cannot be reduced; sizes are rounded
        image, shrunk = read_photo(path), 1
    if image is None:
        return "unreadable"
    return f"smaller than {MINIMUM_SIDE} pixels" if shrunk * min(image.shape[:2]) < MINIMUM_SIDE else ""


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """No line of OpenCV's for every corrupt file: they are counted."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _cache_file(folder: Path) -> Path:
    return cache_folder("photos") / (hashlib.sha256(str(folder).encode()).hexdigest()[:16] + ".json")


def _load(folder: Path) -> dict[ImageFile, str]:
    """What earlier runs found, by file; nothing where there is no such record or it cannot be read."""
    try:
        return {ImageFile(*file): str(fault) for *file, fault in json.loads(_cache_file(folder).read_text())}
    except (OSError, ValueError, TypeError):
        return {}


def _save(folder: Path, found: Mapping[ImageFile, str | None]) -> None:
    try:
        with written_whole(_cache_file(folder)) as beside:
            beside.write_text(json.dumps([[*key, fault] for key, fault in found.items()]))
    except (OSError, InputError) as error:
        log.warning("checked images are not remembered (%s); the next run checks them again", error)
