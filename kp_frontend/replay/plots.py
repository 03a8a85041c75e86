"""The report's plots, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from kp_frontend.replay.result import STAGES
from kp_frontend.replay.summary import Evaluation
from kp_frontend.replay.trajectory import Trajectory

# Okabe and Ito's colours, told apart by the colour-blind; black is left to the ground truth.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STAGE_COLOURS = (*COLOURS, "#999999", "#F0E442")
_FLAT = 0.15  # a path that is narrower, as a share of its length, is stretched
_MOST_POINTS = 2000
_STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "kp_frontend", "font.family": "sans-serif",
}
Plot = tuple[str, str]  # title, SVG


def trajectory_plots(evaluations: Sequence[Evaluation], truth: Trajectory | None) -> list[Plot]:
    """The path from two sides: the two longest axes of the ground truth, then the longest and the shortest."""
    paths = [
        (k, entry.run.features, path) for k, entry in enumerate(evaluations)
        if (path := _shown_path(entry)) is not None and len(path)
    ]
    if not paths:
        return []
    first, second, third = np.argsort(-np.ptp((paths[0][2] if truth is None else truth).positions, axis=0)).tolist()
    return [_view(paths, truth, [first, second]), _view(paths, truth, [first, third])]


def _shown_path(entry: Evaluation) -> Trajectory | None:
    """Aligned to the ground truth where there is one: in its own frame a path says nothing beside it."""
    return entry.run.trajectory if entry.error is None else entry.error.aligned


def _view(paths: list[tuple[int, str, Trajectory]], truth: Trajectory | None, axes: list[int]) -> Plot:
    spans = np.ptp((paths[0][2] if truth is None else truth).positions[:, axes], axis=0)
    flat = spans[1] < _FLAT * spans[0]
    title = f"Path, {'xyz'[axes[0]]} and {'xyz'[axes[1]]} (m){', stretched' if flat else ''}"

    def draw(plot: Any) -> None:
        if truth is not None:
            plot.plot(*_thin(truth.positions)[:, axes].T, color="black", linewidth=2.2, alpha=0.5, label="ground truth")
        for k, name, path in paths:
            plot.plot(*_thin(path.positions)[:, axes].T, color=COLOURS[k % len(COLOURS)], linewidth=1.3, label=name)
        start = (paths[0][2] if truth is None else truth).positions[0, axes]
        plot.plot(*start, "o", color="black", markersize=5, label="start")
        plot.set_xlabel(f"{'xyz'[axes[0]]} (m)")
        plot.set_ylabel(f"{'xyz'[axes[1]]} (m)")
        if not flat:
            plot.set_aspect("equal", adjustable="datalim")
        plot.legend(fontsize=8)

    return title, _figure(title, draw)


def curve_plots(evaluations: Sequence[Evaluation]) -> list[Plot]:
    """Figures of every frame over time."""
    plots = []
    for title, values in (
        ("Position error over time (m)", _errors),
        ("Inliers a frame", lambda entry: _used(entry, entry.run.counts["inliers"])),
        ("Matches to the frame before", lambda entry: _used(entry, entry.run.counts["matches"])),
        ("Keypoints a frame", lambda entry: _used(entry, entry.run.counts["keypoints"])),
        ("Mean track age (frames)", lambda entry: _used(entry, entry.run.ages)),
        ("Time a frame (ms)", lambda entry: (entry.run.stamps, entry.run.timings.get("total"))),
        ("Latency, image sent to features received (ms)", lambda entry: (entry.run.stamps, entry.run.latency)),
    ):
        curves = [(k, entry.run.features, *values(entry)) for k, entry in enumerate(evaluations)]
        curves = [curve for curve in curves if curve[3] is not None and np.any(np.nan_to_num(curve[3]))]
        if curves:
            plots.append((title, _figure(title, lambda plot, curves=curves: _curves(plot, curves))))
    return plots


def _errors(entry: Evaluation) -> tuple[np.ndarray | None, np.ndarray | None]:
    return (entry.error.stamps, entry.error.errors) if entry.error is not None else (None, None)


def _used(entry: Evaluation, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`values` with gaps at frames that were dropped or could not be used."""
    return entry.run.stamps, np.where(entry.run.used, values, np.nan)


def _curves(plot: Any, curves: list[tuple[int, str, np.ndarray, np.ndarray]]) -> None:
    begin = min(stamps[0] for _, _, stamps, _ in curves)
    for k, name, stamps, values in curves:
        points = _thin(np.stack([(stamps - begin) * 1e-9, values], axis=1))
        plot.plot(*points.T, color=COLOURS[k % len(COLOURS)], linewidth=1.1, label=name)
    plot.set_xlabel("time (s)")
    plot.set_ylim(0, 1.08 * max(np.nanmax(values) for _, _, _, values in curves))
    plot.legend(fontsize=8)


def stage_plot(evaluations: Sequence[Evaluation]) -> Plot | None:
    """Median milliseconds of each stage, stacked."""
    stages = [
        stage for stage in STAGES
        if any(stage in entry.times() and entry.times()[stage].p50 >= 0.05 for entry in evaluations)
    ]
    if not stages:
        return None
    title = "Median time a frame, by stage (ms)"

    def draw(plot: Any) -> None:
        left = np.zeros(len(evaluations))
        for k, stage in enumerate(stages):
            medians = [entry.times()[stage].p50 if stage in entry.times() else 0.0 for entry in evaluations]
            plot.barh([entry.run.features for entry in evaluations], medians, left=left, height=0.6,
                      color=_STAGE_COLOURS[k % len(_STAGE_COLOURS)], label=stage)
            left += medians
        plot.invert_yaxis()
        plot.set_xlabel("ms")
        plot.figure.legend(loc="outside lower center", fontsize=8, ncols=4)

    return title, _figure(title, draw)


def _thin(points: np.ndarray) -> np.ndarray:
    """At most `_MOST_POINTS` rows, so that long recordings make readable files."""
    return points[:: max(1, -(-len(points) // _MOST_POINTS))]


def _figure(title: str, draw: Any) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE):
        figure, plot = pyplot.subplots(figsize=(4.8, 3.3), layout="constrained")
        draw(plot)
        plot.set_title(title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue()
