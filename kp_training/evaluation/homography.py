"""The homography benchmark: every pair of the data under every protocol, for every extractor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kp_frontend import load_extractor
from kp_frontend.errors import InputError
from kp_frontend.extractors import EXTRACTORS, Extractor, parse_spec
from kp_frontend.extractors.learned import LearnedExtractor
from kp_frontend.features import Features
from kp_training.data.photos import SUFFIXES
from kp_training.evaluation.metrics import Side
from kp_training.evaluation.photo_pairs import PhotoPairs
from kp_training.evaluation.protocols import Preset, Setting
from kp_training.evaluation.sequences import HomographyPair, Loading, Sequences
from kp_training.workers import run_tasks

Rows = list[dict[str, Any]]


class PairSource(Protocol):
    """Where pairs come from: units that are scored one by one, each of one pair or more."""

    def units(self, left_out: frozenset[str]) -> dict[int, int]:
        """Number → count of pairs of each unit that is not `left_out`."""
        ...

    def pairs(self, number: int, loading: Loading) -> Iterable[HomographyPair]:
        """The pairs of a unit; those that share image 0 share the array."""
        ...


def open_pairs(data: str, count: int | None = None, seed: int | None = None) -> Sequences | PhotoPairs:
    """The pairs of a folder of sequences, or those made from a folder of photographs (``photos:DIR`` or plain DIR).

    count, seed: of pairs made from photographs (300 and 0).
    Raises InputError for a folder with neither, and for `count` or `seed` beside sequences.
    """
    folder = Path(data.removeprefix("photos:")).expanduser()
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; give a folder of sequences with images 1.png, 2.png … and H_1_2 …, "
                         "or of photographs")
    sequences = next(folder.rglob("H_1_*"), None) is not None
    if data.startswith("photos:") or (not sequences and any(_photographs(folder))):
        return PhotoPairs(folder, 300 if count is None else count, seed or 0)
    if sequences and (count, seed) != (None, None):
        raise InputError(f"--pairs and --seed are for photographs, but {folder} holds sequences; leave them out, "
                         f"or give photos:{folder}")
    return Sequences(folder)


def _photographs(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


@dataclass(frozen=True)
class Task:
    """One unit of the data for one extractor under one protocol."""

    features: str
    setting: Setting
    unit: int


def evaluate(
    source: PairSource, features: Sequence[str], settings: Sequence[Setting], jobs: int = 1,
    advance: Callable[[int], None] = lambda pairs: None,
) -> dict[str, dict[str, Rows]]:
    """Preset → features → one row a pair: ``sequence``, ``pair``, ``source`` and the preset's metrics.

    jobs: processes; rows do not depend on it.  advance: called with the number of pairs that were done.
    """
    tasks = [Task(spec, setting, unit) for setting in settings for spec in features
             for unit in source.units(setting.protocol.left_out)]
    done: dict[int, Rows] = {}
    for number, rows in run_tasks(functools.partial(score_unit, source), tasks, jobs):
        done[number] = rows
        advance(len(rows))
    results: dict[str, dict[str, Rows]] = {setting.preset: {spec: [] for spec in features} for setting in settings}
    for number, task in enumerate(tasks):
        results[task.setting.preset][task.features] += done[number]
    return results


def score_unit(source: PairSource, task: Task) -> Rows:
    """The rows of one unit."""
    protocol, rows, first = task.setting.protocol, [], (None, None)
    for pair in source.pairs(task.unit, task.setting.loading):
        if pair.image0 is not first[0]:
            first = (pair.image0, side_of(pair.image0, task.features, task.setting))
        second = side_of(pair.image1, task.features, task.setting)
        metrics = protocol.score(first[1], second, pair.homography, task.setting.top_k)
        rows.append({"sequence": pair.group, "pair": pair.name, "source": pair.source, **metrics})
    return rows


def side_of(image: np.ndarray, features: str, setting: Setting) -> Side:
    """What the extractor `features` finds in `image` under a protocol."""
    extractor = cached_extractor(features, setting.protocol.pool * setting.top_k)
    return Side(_extract(extractor, image, setting.protocol), image.shape[:2])


def _extract(extractor: Extractor, image: np.ndarray, protocol: Preset) -> Features:
    color = isinstance(extractor, LearnedExtractor) and extractor.engine.metadata.color == "rgb"
    return extractor.extract(image[..., ::-1].copy() if protocol.blue_first and color else image)


@functools.cache
def cached_extractor(spec: str, top_k: int) -> Extractor:
    """The extractor of `spec`, loaded once a process, on one thread: processes share the cores, and sums keep order."""
    name, given = parse_spec(spec)
    threads = {} if name in EXTRACTORS or "threads" in given else {"threads": 1}
    return load_extractor(spec, top_k=top_k, **threads)
