"""Pictures of the homography benchmark: curves of MMA over the threshold, and the matches of the worst pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_training.evaluation.homography import PairSource, side_of
from kp_training.evaluation.metrics import Matched, matched
from kp_training.evaluation.protocols import CURVE, Setting
from kp_training.evaluation.report import Outcome, labels
from kp_training.evaluation.sequences import HomographyPair
from kp_training.geometry.homography import view_corners, warp_points

_MOST_PANELS = 8
_WORST = 3
_WIDEST = 900  # pixels of one image in a picture
GREEN, RED = (60, 200, 60), (40, 40, 230)  # BGR, of matches that are right and wrong
_YELLOW, _WHITE = (0, 220, 255), (255, 255, 255)
STYLES = ("-", "--", ":", "-.")


def plot_curves(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Mean matching accuracy over the threshold as a PNG; False, and no file, where no preset has such a curve.

    A row of panels for each preset, a panel for each group and the mean; of more than eight, those over many sequences.
    """
    from matplotlib.figure import Figure

    outcomes = [outcome for outcome in outcomes if f"MMA@{CURVE[-1]}" in next(iter(outcome.summaries.values()))["mean"]]
    if not outcomes:
        return False
    panels = outcomes[0].groups
    panels = panels if len(panels) <= _MOST_PANELS else panels[-3:] if "viewpoint" in panels else panels[-1:]
    figure = Figure(figsize=(2.9 * len(panels) + 1, 3.2 * len(outcomes)), layout="constrained")
    grid = figure.subplots(len(outcomes), len(panels), sharex=True, sharey=True, squeeze=False)
    for row, outcome in zip(grid, outcomes):
        names = labels(list(outcome.summaries))
        for axes, panel in zip(row, panels):
            for number, (spec, summary) in enumerate(outcome.summaries.items()):
                means, errors = np.nan_to_num([summary[panel][f"MMA@{limit}"] for limit in CURVE]).T
                line, = axes.plot(CURVE, means, label=names[spec], linestyle=STYLES[number // 10 % len(STYLES)])
                axes.fill_between(CURVE, means - errors, means + errors, color=line.get_color(), alpha=0.12)
            axes.set(title=f"{panel} ({outcome.setting.preset})", xlabel="threshold (pixels)", ylim=(0, 1))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("mean matching accuracy")
    grid[0, 0].legend(fontsize="small")
    figure.suptitle("share of mutual matches within the threshold; bands: standard error", fontsize="small")
    figure.savefig(path, dpi=120)
    return True


def draw_worst(source: PairSource, outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Pictures ``PRESET_FEATURES_worstN.png`` of the pairs that score least, for each preset and features."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for outcome in outcomes:
        setting, rank = outcome.setting, outcome.setting.protocol.rank
        places = [(unit, k) for unit, count in source.units(setting.protocol.left_out).items() for k in range(count)]
        names = labels(list(outcome.rows))
        for spec, rows in outcome.rows.items():
            order = np.argsort([row[rank] for row in rows], kind="stable")[:_WORST]
            for place, number in enumerate(order, 1):
                unit, k = places[number]
                pair = next(pair for j, pair in enumerate(source.pairs(unit, setting.loading)) if j == k)
                metrics = ", ".join(f"{column} {rows[number][column]:.4g}" for column in setting.protocol.columns)
                title = [f"{names[spec]}: pair {pair.group} {pair.name} ({pair.source}), number {place} of the worst "
                         f"by {rank}, of {len(rows)}", f"{setting}", metrics]
                path = folder / f"{setting.preset}_{re.sub('[^A-Za-z0-9._-]', '_', names[spec])}_worst{place}.png"
                if not cv2.imwrite(str(path), _picture(pair, spec, setting, title)):
                    raise InputError(f"cannot write {path}; is the disk full?")
                written.append(path)
    return written


def _picture(pair: HomographyPair, spec: str, setting: Setting, title: list[str]) -> np.ndarray:
    """Both images side by side with their mutual matches, under a few lines of text."""
    sides = [side_of(image, spec, setting) for image in (pair.image0, pair.image1)]
    kept = [side.features.top_k(setting.top_k) for side in sides]
    pairs = matched(*kept, pair.homography)
    right = pairs.errors <= 3
    text = [*title, f"{len(pairs)} mutual matches: {right.sum()} within 3 px of the truth (green), "
                    f"{len(pairs) - right.sum()} wrong (red, thinned where many); yellow: the left image's frame"]
    drawn = _side_by_side(pair, pairs, right)
    return np.vstack([caption(text, drawn.shape[1]), drawn])


def _side_by_side(pair: HomographyPair, pairs: Matched, right: np.ndarray) -> np.ndarray:
    split = pair.image0.shape[1]
    canvas, scale = beside(pair.image0, pair.image1)
    frame = warp_points(pair.homography, view_corners(*pair.image0.shape[:2]))
    if np.isfinite(frame).all() and np.abs(frame).max() < 1e4:
        outline = canvas[:, round(split * scale):]  # a view: lines end where the right image does
        cv2.polylines(outline, [np.rint(frame * scale).astype(np.int32)], True, _YELLOW, 2, cv2.LINE_AA)
    ends = np.stack([pairs.points0, pairs.points1 + [split, 0]], axis=1) * scale
    lines = np.rint(ends).astype(np.int32)
    wrong = lines[~right]
    cv2.polylines(canvas, list(wrong[:: max(1, len(wrong) // 150)]), False, RED, 1, cv2.LINE_AA)
    cv2.polylines(canvas, list(lines[right]), False, GREEN, 1, cv2.LINE_AA)
    return canvas


def beside(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, float]:
    """Two images, H×W×3 BGR or H×W uint8, side by side, and what both were scaled by to fit."""
    split = image0.shape[1]
    scale = min(1.0, _WIDEST / max(split, image1.shape[1]))
    canvas = np.zeros((max(image0.shape[0], image1.shape[0]), split + image1.shape[1], 3), np.uint8)
    for image, left in ((image0, 0), (image1, split)):
        colored = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        canvas[: image.shape[0], left : left + image.shape[1]] = colored
    return cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def caption(lines: Sequence[str], width: int) -> np.ndarray:
    """Lines of text as a picture of this width."""
    strip = np.zeros((22 * len(lines) + 10, width, 3), np.uint8)
    for number, line in enumerate(lines):
        plain = line.encode("ascii", "replace").decode()  # all that OpenCV's fonts have
        (reach, _), _ = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        size = 0.5 * min(1.0, (width - 12) / reach)
        cv2.putText(strip, plain, (6, 20 + 22 * number), cv2.FONT_HERSHEY_SIMPLEX, size, _WHITE, 1, cv2.LINE_AA)
    return strip
