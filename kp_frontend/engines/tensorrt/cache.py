"""Engines that were built, kept in the cache folder until they are cleaned."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kp_frontend.engines.cuda_driver import open_driver
from kp_frontend.engines.tensorrt.build import build_plan
from kp_frontend.engines.tensorrt.library import Target, import_library, target_of
from kp_frontend.engines.tensorrt.plan_file import Header, Recipe, file_sha256, read_header, write_plan
from kp_frontend.engines.tensorrt.progress import TOTAL
from kp_frontend.engines.tensorrt.sizes import Size, choose_sizes
from kp_frontend.errors import InputError
from kp_frontend.model_file import read_metadata
from kp_frontend.progress import Progress
from kp_frontend.resources import cache_folder

_LOG = logging.getLogger(__name__)
_SUFFIX, _LOCK = ".engine", ".lock"


@dataclass(frozen=True)
class BuildOptions:
    """size: of the images, (0, 0) = not known.  smallest, largest: where they vary; see `choose_sizes`.

    workspace: see Recipe.  output: file to write instead of one in the cache.
    """

    size: Size = (0, 0)
    smallest: Size | None = None
    largest: Size | None = None
    workspace: int = 0
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.workspace < 0:
            raise InputError(f"workspace is {self.workspace} MB, expected at least 1, or 0 for TensorRT's default")
        if self.output is not None and self.output.suffix != _SUFFIX:
            raise InputError(f"output {self.output}: expected a file name that ends in {_SUFFIX}")


def folder() -> Path:
    """Where engines are kept."""
    return cache_folder("engines")


def build_engine(
    path: Path, options: BuildOptions, progress: Progress, *, trt: Any = None, target: Target | None = None
) -> Path:
    """The engine file of the ONNX file `path` as `options` want it: one that is there already, or built now.

    trt, target: TensorRT's module and what it builds for; default: this machine's.  One build at a time: beside
    another, TensorRT would measure the speed of its kernels wrongly.
    Raises Unavailable where it cannot be built here, InputError for a file or sizes that cannot be used.
    """
    metadata = read_metadata(path)
    sizes = choose_sizes(metadata, options.size, options.smallest, options.largest)
    if target is None:
        driver = open_driver()
        driver.use()
        trt = import_library()
        target = target_of(trt, driver)
    recipe = Recipe(metadata, file_sha256(path), sizes, options.workspace, target)
    place = options.output or folder() / f"{path.stem}-{recipe.key}{_SUFFIX}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone():
        if options.output is None and is_built(place, recipe):
            progress(TOTAL, TOTAL)
            return place
        plan = build_plan(trt, path, metadata, sizes, workspace=options.workspace, timings=_timings(target),
                          progress=progress)
        write_plan(place, recipe, path.name, plan)
    progress(TOTAL, TOTAL)
    return place


def is_built(place: Path, recipe: Recipe) -> bool:
    """Whether `place` holds the whole engine of `recipe`."""
    try:
        return read_header(place).recipe == recipe
    except InputError:
        return False


def entries() -> list[tuple[Path, Header | None]]:
    """Every engine in the cache with its header, None where it is damaged; the newest first."""
    found = []
    with suppress(OSError):  # another process may clean it in between
        found = sorted(folder().glob(f"[!.]*{_SUFFIX}"), key=lambda path: -path.stat().st_mtime)
    return [(path, _header(path)) for path in found]


def find(model: Path, size: Size, target: Target) -> Path | None:
    """The best engine in the cache that runs the ONNX file `model` at `size` ((0, 0) = any) on `target`.

    One that is fixed to the size before one for several.
    """
    sha256 = file_sha256(model)
    fitting = [
        (header.recipe.sizes, path) for path, header in entries()
        if header is not None and header.recipe.model_sha256 == sha256 and header.recipe.target == target
        and header.recipe.sizes.hold(size)
    ]
    fixed = [path for sizes, path in fitting if sizes.fixed]
    return next(iter([*fixed, *(path for _, path in fitting)]), None)


def clean(older_than: float) -> list[Path]:
    """Remove engines that are older than so many days, and what stopped builds left; returns what is gone."""
    before = time.time() - older_than * 86400
    gone = []
    for path in sorted(folder().iterdir()):
        if path.name != _LOCK and path.stat().st_mtime <= before:
            path.unlink(missing_ok=True)
            gone.append(path)
    return gone


@contextmanager
def _alone() -> Iterator[None]:
    with open(folder() / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("another process builds an engine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _timings(target: Target) -> Path:
    """File of the kernels' times of one TensorRT on one kind of GPU."""
    name = f"{target.library}-{target.version}-{target.gpu}-sm{target.sm}"
    return folder() / f"{''.join(letter if letter.isalnum() or letter in '.-' else '_' for letter in name)}.timings"


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except InputError:
        return None
