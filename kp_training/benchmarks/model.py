"""What a frame costs by engine, precision, size and points: all rows take turns, so that noise hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kp_frontend.errors import InputError
from kp_frontend.progress import Progress
from kp_frontend.replay.summary import Percentiles
from kp_training.benchmarks.model_files import REFERENCE, Subject, Variant
from kp_training.benchmarks.model_process import Processes
from kp_training.benchmarks.model_rows import BASELINE, PHOTOGRAPHS, Facts, Row
from kp_training.benchmarks.photographs import photographs

BASELINES = ("orb", "sift")
MATCHED = (64, 256)
"""Sizes of the descriptors that matching is timed for."""
LEAST_RUNS, LONGEST = 3, 2e3
"""A row that has run so often stops after so many milliseconds."""


@dataclass(frozen=True)
class ModelFigures:
    """A row with its milliseconds: `whole` of image in → Features in hand, of it `before`, in and `after` the network.

    facts: what it is, its parity and accuracy.  runs: that were timed.
    """

    row: Row
    facts: Facts
    whole: Percentiles
    parts: dict[str, Percentiles]
    runs: int

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU took part."""
        return self.row.backend not in ("tensorrt", "cuda") and "cuda" not in self.facts.engine.lower()

    def written(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **vars(self.row), "file": self.row.file and self.row.file.name, "name": self.row.name, **vars(self.facts),
            "whole": vars(self.whole), **{name: vars(part) for name, part in self.parts.items()}, "runs": self.runs,
        }


def baseline_rows(sizes: Sequence[tuple[int, int]], points: Sequence[int]) -> list[Row]:
    """What is timed beside the networks."""
    rows = [Row("classical", name, BASELINE, height=height, width=width, top_k=top_k)
            for height, width in sizes for top_k in points for name in BASELINES]
    return rows + [Row("matching", f"mutual NN {top_k}×{top_k}×{size}", BASELINE, top_k=top_k, size=size)
                   for top_k in points for size in MATCHED]


def network_rows(
    subject: Subject, files: Mapping[Variant, Path], backends: Sequence[str], sizes: Sequence[tuple[int, int]],
    points: Sequence[int],
) -> list[Row]:
    """Every file on every backend that it was made for, at every size; a sparse file with its own points only."""
    return [
        Row("network", subject.name, backend, variant.label, file, height, width, top_k, trained=not subject.method)
        for variant, file in files.items() for backend in backends if _made_for(variant, backend)
        for height, width in sizes for top_k in points if variant.top_k in (0, top_k)
    ]


def _made_for(variant: Variant, backend: str) -> bool:
    return variant.quantized_for in ("", "tensorrt" if backend == "tensorrt" else "cpu")


def usable(processes: Processes, backends: Sequence[str], file: Path, refused: list[str]) -> list[str]:
    """Those that run `file` here; the others go to `refused`, with the reason."""
    found = []
    for backend in backends:
        try:
            processes.ask(backend, "probe", Row("network", file.stem, backend, file=file))
            found.append(backend)
        except InputError as error:
            refused.append(f"{backend}: {error}")
    return found


def measure(
    processes: Processes, rows: Sequence[Row], references: Mapping[str, Path], pairs: int, repeats: int,
    begin: Callable[[str], Progress], refused: list[str],
) -> list[ModelFigures]:
    """Figures of all rows that run here; the others go to `refused`, with the reason.

    references: fp32 file of each subject that has one, which onnxruntime runs for the parity.
    pairs: that accuracy is taken from.  begin: of `progress_of_parts`, for two parts.
    """
    photographs(PHOTOGRAPHS)  # once, not by all processes
    found = _open(processes, rows, references, pairs, begin("opening, parity and accuracy"), refused)
    times = _take_turns(processes, rows, found, repeats, begin("timing"), refused)
    return [_figures(rows[number], found[number], times[number]) for number in times]


def _open(
    processes: Processes, rows: Sequence[Row], references: Mapping[str, Path], pairs: int, progress: Progress,
    refused: list[str],
) -> dict[int, Facts]:
    """What each row that runs is, by its number."""
    found, expected = {}, {}
    for number, row in enumerate(rows):
        try:
            subject = row.features, row.height, row.width, row.top_k
            if row.kind == "network" and row.features in references and subject not in expected:
                reference = Row("network", row.features, "onnxruntime", REFERENCE.label, references[row.features],
                                *subject[1:])
                expected[subject] = processes.ask("onnxruntime", "features", reference)
            found[number] = processes.ask(row.backend, "open", number, row, expected.get(subject), pairs)
        except InputError as error:
            refused.append(f"{row.name}: {error}")
        progress(number + 1, len(rows))
    return found


def _take_turns(
    processes: Processes, rows: Sequence[Row], found: Mapping[int, Facts], repeats: int, progress: Progress,
    refused: list[str],
) -> dict[int, list[dict[str, float]]]:
    """Times of each row that ran to the end, by its number."""
    times: dict[int, list[dict[str, float]]] = {number: [] for number in found}
    waiting = list(times)
    while waiting:
        for number in list(waiting):
            try:
                times[number] += processes.ask(rows[number].backend, "turn", number)
            except InputError as error:
                refused.append(f"{rows[number].name}: {error}")
                del times[number]
            if number not in times or _enough(times[number], repeats):
                waiting.remove(number)
                progress(len(found) - len(waiting), len(found))
    return times


def _enough(times: Sequence[Mapping[str, float]], repeats: int) -> bool:
    spent = sum(each["whole"] for each in times)
    return len(times) >= repeats or (len(times) >= LEAST_RUNS and spent >= LONGEST)


def _figures(row: Row, facts: Facts, times: Sequence[Mapping[str, float]]) -> ModelFigures:
    parts = {name: Percentiles.of([each[name] for each in times]) for name in times[0]}
    return ModelFigures(row, facts, parts.pop("whole"), parts, len(times))
