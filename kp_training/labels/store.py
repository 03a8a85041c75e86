"""Labels on disk: a run that was stopped while it made them goes on where it was, and none are made twice."""

from __future__ import annotations

import hashlib
import logging
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_training.labels.points import AdaptedLabels, LabelConfig

FORMAT = 2

log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """Images that are labelled together, and written at once: what a killed run does again at most.

    file: where their labels are kept.  indices: of the images in their source.
    """

    file: Path
    indices: np.ndarray


def kept_labels(
    shards: Sequence[Shard], label: Callable[[np.ndarray], Iterable[np.ndarray]], config: LabelConfig, what: str
) -> AdaptedLabels:
    """Labels of the images of `shards`, in order: read where they are there, else made by `label` and kept.

    label: indices of a shard → N×3 float32 (x, y, probability) of each of its images, in order.
    what: the images in a word or two, for the progress bar.
    Raises InputError where the disk is full.
    """
    order = np.concatenate([shard.indices for shard in shards])
    found = [_read(shard) for shard in shards]
    missing = sum(len(shard.indices) for shard, labels in zip(shards, found) if labels is None)
    if missing:
        with _progress(len(order), len(order) - missing, what) as advance:
            for number, shard in enumerate(shards):
                if found[number] is None:
                    found[number] = _make(shard, label, advance)
    counts, points = (np.concatenate(parts) for parts in zip(*(labels for labels in found if labels is not None)))
    if len(points) < len(order):
        log.warning("the detector found %d points in %d images, too few to learn from; train it longer, or lower "
                    "adapt_threshold (now %g)", len(points), len(order), config.threshold)
    return AdaptedLabels(order, np.concatenate([[0], np.cumsum(counts)]), points)


def labels_key(detector: nn.Module, images: str, config: LabelConfig, seed: int) -> str:
    """Name of the folder of labels: another for anything that they depend on.  images: identity of their source."""
    digest = hashlib.sha256(repr((FORMAT, images, type(config).__name__, asdict(config), seed)).encode())
    for name, values in detector.state_dict().items():
        digest.update(name.encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _make(
    shard: Shard, label: Callable[[np.ndarray], Iterable[np.ndarray]], advance: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Number of points of each image of a shard, and all their points, now kept."""
    labelled = []
    for points in label(shard.indices):
        labelled.append(points)
        advance()
    labels = np.array([len(points) for points in labelled]), np.concatenate(labelled)
    _write(shard.file, labels)
    return labels


def _read(shard: Shard) -> tuple[np.ndarray, np.ndarray] | None:
    """Counts and points of `shard`, None where they are not there or were cut short."""
    try:
        with np.load(shard.file, allow_pickle=False) as stored:
            counts, points = stored["counts"], stored["points"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (counts, points) if len(counts) == len(shard.indices) and counts.sum() == len(points) else None


def _write(file: Path, labels: tuple[np.ndarray, np.ndarray]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as beside, beside.open("wb") as stream:
            np.savez(stream, counts=labels[0], points=labels[1])
    except OSError as error:
        raise InputError(f"labels cannot be kept in {file.parent} ({error.strerror}); free some space there, or set "
                         "KP_FRONTEND_CACHE to a folder that has it, and resume the run") from error


@contextmanager
def _progress(total: int, done: int, what: str) -> Iterator[Callable[[], None]]:
    """Gives what to call after each image: a bar on a terminal, and everywhere a line before and after."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console, start, made = Console(), time.monotonic(), 0
    columns = (TextColumn("labels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[speed]:.2f} images/s"))

    print(f"labelling {total - done} {what} ({done} are there)", flush=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("labels", total=total, completed=done, speed=0.0)

        def advance() -> None:
            nonlocal made
            made += 1
            bar.update(task, advance=1, speed=made / (time.monotonic() - start))

        yield advance
    seconds = time.monotonic() - start
    print(f"labelled {made} images in {seconds / 60:.1f} minutes, {made / seconds:.2f} images/s", flush=True)
