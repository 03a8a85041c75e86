"""Pictures of the relative pose benchmark: recall over the error, and the matches of the worst pairs."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_training.evaluation.figures import STYLES, beside, caption
from kp_training.evaluation.relative_pose.metrics import epipolar_errors
from kp_training.evaluation.relative_pose.pairs import PosePair, PoseSource
from kp_training.evaluation.relative_pose.protocols import THRESHOLDS, PoseSetting
from kp_training.evaluation.relative_pose.report import PoseOutcome
from kp_training.evaluation.relative_pose.scoring import PairResult, open_matcher
from kp_training.evaluation.report import labels

_WORST = 3
_WRONG = 8.0  # pixels from the epipolar line that are drawn as red as any more
_MOST_LINES = 300


def plot_recall(outcome: PoseOutcome, path: Path) -> None:
    """Share of pairs over the largest error, as a PNG: a panel for each group, a line style for each estimator."""
    from matplotlib.figure import Figure

    groups, names = list(outcome.poses), labels(list(outcome.results))
    figure = Figure(figsize=(4.2 * len(groups) + 1, 3.6), layout="constrained")
    grid = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(grid, groups):
        for color, (spec, results) in enumerate(outcome.results.items()):
            for style, solver in zip(STYLES, outcome.setting.solvers):
                errors = np.sort(np.ravel([result.errors(solver) for result in results if result.group == group]))
                recall = np.arange(len(errors) + 1) / len(errors)
                area = outcome.poses[group][spec][solver]["AUC@10"][0]
                axes.step([0, *np.minimum(errors, 360)], recall, where="post", color=f"C{color}", linestyle=style,
                          label=f"{names[spec]}, {solver}: AUC@10 {area:.3f}")
        axes.set(title=group, xlabel="error (degrees)", xlim=(0, THRESHOLDS[-1]), ylim=(0, 1))
        axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("share of pairs")
    figure.savefig(path, dpi=120)


def draw_worst_poses(source: PoseSource, outcome: PoseOutcome, folder: Path) -> list[Path]:
    """Pictures ``FEATURES_worstN.png`` of the pairs with the largest error by the first estimator."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {(pair.group, pair.name): pair for pair in source.pairs}
    solver, names, written = outcome.setting.solvers[0], labels(list(outcome.results)), []
    for spec, results in outcome.results.items():
        errors = [np.median(result.errors(solver)) for result in results]
        for place, number in enumerate(np.argsort(errors, kind="stable")[::-1][:_WORST], 1):
            result = results[number]
            title = [f"{names[spec]}: pair {result.pair} ({result.group}; {result.source}), number {place} of the "
                     f"worst by {solver}, of {len(results)}", f"{outcome.setting}", _errors(result)]
            path = folder / f"{re.sub('[^A-Za-z0-9._-]', '_', names[spec])}_worst{place}.png"
            picture = _picture(source, pairs[result.group, result.pair], spec, outcome.setting, title)
            if not cv2.imwrite(str(path), picture):
                raise InputError(f"cannot write {path}; is the disk full?")
            written.append(path)
    return written


def _errors(result: PairResult) -> str:
    solved = [f"{name}: rotation {np.median(attempts.rotation):.3g}, direction {np.median(attempts.translation):.3g} "
              f"degrees, {np.median(attempts.inliers):.0f} inliers" for name, attempts in result.solved.items()]
    return "; ".join(solved)


def _picture(source: PoseSource, pair: PosePair, spec: str, setting: PoseSetting, title: list[str]) -> np.ndarray:
    """Both images side by side with their matches by epipolar error, under a few lines of text."""
    views = [source.view(key, setting.size) for key in (pair.first, pair.second)]
    matcher = open_matcher(spec, setting.top_k)
    points = matcher.match(*(matcher.prepare(view.image) for view in views))
    errors, _ = epipolar_errors(pair.second_from_first, views[0].rays(points[0]), views[1].rays(points[1]),
                                (views[0].focal + views[1].focal) / 2)
    canvas, scale = beside(*(view.image for view in views))
    ends = np.stack([points[0], points[1] + [views[0].image.shape[1], 0]], axis=1) * scale
    order = np.argsort(-errors, kind="stable")  # the good ones on top
    for k in order[:: max(1, len(order) // _MOST_LINES)]:
        share = min(errors[k] / _WRONG, 1)
        color = (40, 220 * (1 - share) + 40 * share, 40 * (1 - share) + 230 * share)
        cv2.polylines(canvas, [np.rint(ends[k]).astype(np.int32)], False, color, 1, cv2.LINE_AA)
    text = (f"{len(errors)} matches, {np.sum(errors <= 1)} of them within 1 px of the true epipolar line; "
            f"green 0 to red {_WRONG:g} px and more")
    return np.vstack([caption([*title, text], canvas.shape[1]), canvas])
