"""What the relative pose benchmark found: a table, and everything as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.replay.summary import without_nan
from kp_training.evaluation.relative_pose.metrics import area_under_curve, pair_scores
from kp_training.evaluation.relative_pose.protocols import THRESHOLDS, PoseSetting, published_poses
from kp_training.evaluation.relative_pose.scoring import PairResult, Results
from kp_training.evaluation.report import labels, number, show_table
from kp_training.evaluation.summary import Estimate, estimate

AREAS = tuple(f"AUC@{threshold}" for threshold in THRESHOLDS)
POSES = (*AREAS, "rot °", "dir °", "inliers")
NAN = math.nan
Figures = dict[str, Estimate]  # column → figure and its standard error, nan where there is none to tell


@dataclass(frozen=True)
class PoseOutcome:
    """What all pairs come to; `results` holds those whose views could be read, the same for each features.

    poses: group → features → estimator → figures.  others: group → features → figures that need no estimator.
    differences: as `poses`, of AUC against the first features.  unreadable: pairs left out.
    """

    setting: PoseSetting
    results: dict[str, list[PairResult]]
    poses: dict[str, dict[str, dict[str, Figures]]]
    others: dict[str, dict[str, Figures]]
    differences: dict[str, dict[str, dict[str, Figures]]]
    unreadable: int
    metric: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the figures that need no estimator: those that there are."""
        return tuple(next(iter(next(iter(self.others.values())).values())))


def conclude_poses(setting: PoseSetting, results: Results, metric: bool) -> PoseOutcome:
    """Sum up results (features → one a pair, None where a view could not be read); InputError where there is none."""
    kept = {spec: [result for result in entries if result is not None] for spec, entries in results.items()}
    baseline = next(iter(kept))
    if not kept[baseline]:
        raise InputError(f"none of {len(results[baseline])} pairs of views can be read; expected images, not, say, "
                         "pointers to them of Git LFS")
    groups = {group: {spec: [result for result in entries if result.group == group] for spec, entries in kept.items()}
              for group in dict.fromkeys(result.group for result in kept[baseline])}
    return PoseOutcome(
        setting, kept,
        {group: {spec: {solver: pose_figures(entries, solver) for solver in setting.solvers}
                 for spec, entries in by_spec.items()} for group, by_spec in groups.items()},
        {group: {spec: other_figures(entries, setting.protocol.precision, metric) for spec, entries in by_spec.items()}
         for group, by_spec in groups.items()},
        {group: {spec: {solver: _differences(entries, by_spec[baseline], solver) for solver in setting.solvers}
                 for spec, entries in by_spec.items() if spec != baseline} for group, by_spec in groups.items()},
        len(results[baseline]) - len(kept[baseline]), metric,
    )


def pose_figures(results: Sequence[PairResult], solver: str) -> Figures:
    """Figures of one estimator: AUC, the mean over seeds; medians over pairs and seeds; mean of inliers."""
    errors = np.array([result.errors(solver) for result in results])
    areas = np.mean([area_under_curve(column, THRESHOLDS) for column in errors.T], axis=0)
    noise = [estimate(values, _sources(results))[1] for values in _scores(results, solver).T]
    attempts = [result.solved[solver] for result in results]
    inliers = [float(np.mean(attempt.inliers)) for attempt in attempts]
    return {
        **{name: (float(area), error) for name, area, error in zip(AREAS, areas, noise)},
        "rot °": (_quantile([attempt.rotation for attempt in attempts], 0.5), NAN),
        "dir °": (_quantile([attempt.translation for attempt in attempts], 0.5), NAN),
        "inliers": estimate(inliers, _sources(results)),
    }


def other_figures(results: Sequence[PairResult], precision: str, metric: bool) -> Figures:
    """Matches, their precision, and where there is depth the errors of PnP."""
    figures: Figures = {
        "matches": estimate([result.matches for result in results], _sources(results)),
        precision: estimate([result.precision[precision] for result in results], _sources(results)),
    }
    solved = [result.pnp for result in results if result.pnp is not None]
    if solved:
        unit, factor = ("cm", 100) if metric else ("units", 1)
        for share in (0.5, 0.9):
            distance = _quantile([attempt.translation for attempt in solved], share)
            figures[f"PnP {unit} p{100 * share:.0f}"] = (factor * distance, NAN)
        figures["PnP °"] = (_quantile([attempt.rotation for attempt in solved], 0.5), NAN)
    return figures


def _differences(results: Sequence[PairResult], baseline: Sequence[PairResult], solver: str) -> Figures:
    """Of AUC (by steps), pair by pair: the noise of hard and easy pairs, which both share, falls out."""
    gained = _scores(results, solver) - _scores(baseline, solver)
    return {name: estimate(values, _sources(results)) for name, values in zip(AREAS, gained.T)}


def _scores(results: Sequence[PairResult], solver: str) -> np.ndarray:
    """N×T: each pair's part in AUC, the mean over seeds."""
    return np.array([pair_scores(result.errors(solver), THRESHOLDS).mean(0) for result in results])


def _sources(results: Sequence[PairResult]) -> list[str]:
    return [result.source for result in results]


def _quantile(values: Sequence[Sequence[float]], share: float) -> float:
    """Of all values, ∞ among them: none is made between two of them."""
    return float(np.quantile(np.ravel(values), share, method="higher"))


def print_poses(outcome: PoseOutcome, data: str) -> None:
    """The table on the terminal or, into a file or pipe, as wide as it needs to be."""
    from rich.table import Table

    table = Table("pairs", "features", "solver")
    for column in (*POSES, *outcome.columns):
        table.add_column(column, justify="right")
    for group in outcome.poses:
        for row in _rows(outcome, group):
            table.add_row(*row)
        table.add_section()
    show_table(f"relative pose, {outcome.setting}; {data}", table, notes(outcome), width=200)


def notes(outcome: PoseOutcome) -> list[str]:
    """What a reader of the table must know."""
    protocol = outcome.setting.protocol
    direction = "its sign does not count" if protocol.folded else "the wrong sign is wrong"
    still = f"; up to {protocol.still:g} long, rotation only" if protocol.still else ""
    lines = [
        outcome.setting.estimators(),
        f"AUC: of the larger of the rotation's error and the translation direction's ({direction}{still}), failure = ∞",
        "rot, dir: medians; ±: standard error, pairs of a tenth of a scene taken together",
    ]
    if any(name.startswith("PnP") for name in outcome.columns):
        lines.append("PnP: the first view's keypoints of known depth found in the second; where it is, and rotation")
    if outcome.differences and any(outcome.differences.values()):
        lines.append("difference: of AUC, pair by pair, against the first features")
    if outcome.unreadable:
        lines.append(f"left out: {outcome.unreadable} pairs of frames that cannot be read")
    return lines


def _rows(outcome: PoseOutcome, group: str) -> Iterator[list[str]]:
    names = labels(list(outcome.results))
    count = sum(result.group == group for result in next(iter(outcome.results.values())))
    label = f"{group} ({count})"
    for spec, by_solver in outcome.poses[group].items():
        others = outcome.others[group][spec]
        for solver, figures in by_solver.items():
            first = solver == outcome.setting.solvers[0]
            shown = [_shown(figures[name][0]) for name in POSES]
            shown += [_shown(others[name][0]) if first else "" for name in outcome.columns]
            yield [label, names[spec], solver, *shown]
            yield ["", "  ±", "", *_noise(figures, POSES), *(_noise(others, outcome.columns) if first else [])]
            label = ""
    baseline = names[next(iter(outcome.results))]
    for spec, by_solver in outcome.differences[group].items():
        for solver, figures in by_solver.items():
            shown = [number(figures[name][0], "+") for name in AREAS]
            yield ["difference", f"{names[spec]} − {baseline}", solver, *shown]
            yield ["", "  ±", "", *_noise(figures, AREAS)]
    for name, areas in published_poses(outcome.setting, count).items():
        yield ["published", name, "opencv", "", *(number(area) for area in areas)]


def _shown(value: float) -> str:
    return "∞" if math.isinf(value) else number(value)


def _noise(figures: Mapping[str, Estimate], columns: Sequence[str]) -> list[str]:
    """Standard errors; nothing where there is none to tell."""
    return ["" if math.isnan(figures[name][1]) else number(figures[name][1]) for name in columns]


def poses_to_json(outcome: PoseOutcome) -> dict[str, Any]:
    """Setting, figures, standard errors, differences and all pairs; ∞ and nan are null."""
    setting = outcome.setting
    return without_nan({
        "settings": {"preset": setting.preset, "size": str(setting.size), "top_k": setting.top_k,
                     "changed": setting.changed, "solvers": setting.estimators(), "seed": setting.seed,
                     "repeats": setting.repeats, "unit": "m" if outcome.metric else "scene"},
        "unreadable_pairs": outcome.unreadable,
        "figures": _part(outcome.poses, 0), "standard_errors": _part(outcome.poses, 1),
        "matches": _part(outcome.others, 0), "matches_standard_errors": _part(outcome.others, 1),
        "differences": _part(outcome.differences, 0), "differences_standard_errors": _part(outcome.differences, 1),
        "pairs": {spec: [asdict(result) for result in results] for spec, results in outcome.results.items()},
    })


def _part(figures: Any, part: int) -> Any:
    """The figure (0) or its standard error (1) at the bottom of nested dicts."""
    if isinstance(figures, tuple):
        return figures[part]
    return {name: _part(inner, part) for name, inner in figures.items()}
