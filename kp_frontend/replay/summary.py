"""The figures of a run: as a table on the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kp_frontend.atomic import written_whole
from kp_frontend.replay.evaluation import NAN, TrajectoryError
from kp_frontend.replay.result import STAGES, SUMS, RunResult

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
_LISTED_ERRORS = 20


@dataclass(frozen=True)
class Percentiles:
    """Of milliseconds; nan where there are none."""

    p50: float = NAN
    p90: float = NAN
    p99: float = NAN

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray | None) -> Percentiles:
        """Of the finite `values`."""
        times = np.asarray([] if values is None else values, float)
        finite = times[np.isfinite(times)]
        return cls(*(float(value) for value in np.percentile(finite, (50, 90, 99)))) if len(finite) else cls()


@dataclass(frozen=True)
class Evaluation:
    """A run and how well it did: `error` is None without a ground truth or without a trajectory."""

    run: RunResult
    error: TrajectoryError | None = None

    def share(self, status: str) -> float:
        """Percent of all frames with this status."""
        return 100 * float((self.run.status == status).mean()) if len(self.run) else NAN

    def mean(self, count: str) -> float:
        """Mean of a count over the frames that could be used."""
        used = self.run.used
        return float(self.run.counts[count][used].mean()) if count in self.run.counts and used.any() else NAN

    @property
    def track_length(self) -> float:
        """Mean number of frames in which a track was seen."""
        return float(self.run.track_lengths.mean()) if len(self.run.track_lengths) else NAN

    @property
    def rate(self) -> float:
        """Frames a second."""
        return len(self.run) / self.run.seconds if self.run.seconds > 0 else NAN

    @property
    def processor(self) -> float:
        """Processor time in percent of wall time; 100 is one core."""
        return 100 * self.run.cpu_seconds / self.run.seconds if self.run.seconds > 0 else NAN

    def times(self) -> dict[str, Percentiles]:
        """Milliseconds by stage, in the order of work; sums last."""
        stages = _in_order(self.run.timings)
        return {stage: Percentiles.of(self.run.timings[stage]) for stage in stages}

    def to_json(self) -> dict[str, Any]:
        """Every figure, units in the names; nan as None."""
        run, error = self.run, self.error
        figures: dict[str, Any] = {
            "features": run.features, "backend": run.backend, "mode": run.mode, "frames": len(run),
            "percent_of_frames": {status: self.share(status) for status in sorted(set(run.status.tolist()))},
            "mean_per_frame": {name: self.mean(name) for name in run.counts},
            "mean_track_age_frames": float(run.ages[run.used].mean()) if run.used.any() else NAN,
            "mean_track_length_frames": self.track_length, "tracks": len(run.track_lengths),
            "milliseconds": {stage: asdict(times) for stage, times in self.times().items()},
            "frames_per_second": self.rate, "seconds": run.seconds, "cpu_seconds": run.cpu_seconds,
            "cpu_percent": self.processor, "peak_memory_mb": run.memory_mb,
            "errors": [{"stamp_ns": stamp, "message": text} for stamp, text in run.errors[:_LISTED_ERRORS]],
            "error_count": len(run.errors), "notes": list(run.notes),
        }
        if error is not None:
            figures["trajectory_error"] = {
                "alignment": error.alignment, "scale": error.scale, "poses": error.poses, "path_m": error.path,
                "ate_rmse_m": error.rmse, "ate_mean_m": error.mean, "ate_median_m": error.median,
                "ate_max_m": error.max, "ate_rmse_percent_of_path": error.percent, "reason": error.reason,
                "rpe_1_frame": _relative(error.per_frame), "rpe_1_second": _relative(error.per_second),
            }
        if run.latency is not None:
            figures["live"] = {
                "latency_ms": asdict(Percentiles.of(run.latency)), "dropped": len(run.dropped),
                "dropped_stamps_ns": list(run.dropped),
            }
        return without_nan(figures)


def _relative(error: Any) -> dict[str, float]:
    return {"translation_rmse_m": error.translation, "rotation_rmse_deg": error.rotation, "pairs": error.pairs}


def without_nan(value: Any) -> Any:
    """`value` with nan and infinities as None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, all at once; nan as null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        beside.write_text(json.dumps({"schema_version": SCHEMA_VERSION, **without_nan(content)}, indent=2) + "\n")


def number(value: float, digits: int = 0) -> str:
    """`value` with `digits` decimals, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def significant(value: float) -> str:
    """`value` with three significant digits, never as a power of ten; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) > 1e-9 else "0"


def accuracy_rows(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Column titles with units, and a row for each run: trajectory and tracks."""
    errors = [entry.error for entry in evaluations if entry.error is not None]
    alignment = errors[0].alignment if errors else ""
    titles = [
        "features", "tracked %", "starting %", "lost %", f"ATE m ({alignment})" if errors else "ATE m", "% of path",
        "RPE/frame m", "RPE/frame °", "RPE/s m", "RPE/s °", "keypoints", "matches", "inliers", "track frames",
    ]
    return titles, [_accuracy_row(entry) for entry in evaluations]


def _accuracy_row(entry: Evaluation) -> list[str]:
    error = entry.error or TrajectoryError("se3")
    posed = entry.run.mode != "features"
    return [
        entry.run.features,
        *(number(share, 1) if posed else "–" for share in (
            entry.share("tracking"), entry.share("initialising"), entry.share("lost") + entry.share("error")
        )),
        significant(error.rmse), number(error.percent, 2),
        significant(error.per_frame.translation), significant(error.per_frame.rotation),
        significant(error.per_second.translation), significant(error.per_second.rotation),
        *(number(entry.mean(name)) for name in ("keypoints", "matches")),
        number(entry.mean("inliers")) if posed else "–", number(entry.track_length, 1),
    ]


def cost_rows(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Column titles with units, and a row for each run: milliseconds p50/p90/p99 by stage, rate, CPU, memory.

    Stages that take no time (depth, without depth) have no column.
    """
    stages = dict.fromkeys(
        stage for entry in evaluations for stage, times in entry.times().items() if times.p90 >= 0.05
    )
    ordered = _in_order(stages)
    live = any(entry.run.latency is not None for entry in evaluations)
    titles = ["features", *(f"{stage} ms" for stage in ordered), "frames/s", "CPU %", "memory MB"]
    rows = []
    for entry in evaluations:
        times = entry.times()
        row = [entry.run.features, *(_times(times.get(stage, Percentiles())) for stage in ordered)]
        rows.append([*row, number(entry.rate, 1), number(entry.processor), number(entry.run.memory_mb)])
        if live:
            rows[-1] += [_times(Percentiles.of(entry.run.latency)), str(len(entry.run.dropped))]
    return [*titles, *(["latency ms", "dropped"] if live else [])], rows


def _in_order(stages: Iterable[str]) -> list[str]:
    """Stages in the order of work, those of nobody's list, and sums."""
    known = {stage: k for k, stage in enumerate((*STAGES, "", *SUMS))}
    return sorted(stages, key=lambda stage: known.get(stage, known[""]))


def _times(times: Percentiles) -> str:
    if not math.isfinite(times.p50):
        return "–"
    return "/".join(number(value, 1 if value < 100 else 0) for value in (times.p50, times.p90, times.p99))


def table(title: str, titles: list[str], rows: list[list[str]], width: int) -> Table:
    """A table for a terminal of `width` characters; figures become rows where as columns they do not fit."""
    from rich.table import Table

    cells = [titles, *rows]
    if sum(3 + max(map(len, column)) for column in zip(*cells)) + 1 > width:
        cells = [list(column) for column in zip(*cells)]
    made = Table(title=title, title_justify="left", header_style="bold")
    for k, name in enumerate(cells[0]):
        made.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    for row in cells[1:]:
        made.add_row(*row)
    return made
