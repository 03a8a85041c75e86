"""One self-contained HTML page about all runs over one recording."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from kp_frontend.atomic import written_whole
from kp_frontend.replay import plots, provenance
from kp_frontend.replay.summary import Evaluation, accuracy_rows, cost_rows
from kp_frontend.replay.trajectory import Trajectory

_TEMPLATE = Path(__file__).with_name("report_template.html")
_PICTURE_WIDTH = 800
_LISTED_FAILURES = 10
# Which column's best value is emphasised, and whether the smallest or the largest is.
_BEST = {"tracked %": max, "ATE": min, "RPE": min, "inliers": max, "track frames": max, "total ms": min}
_ALIGNMENTS = {
    "se3": "Metric: the estimate is rotated and shifted to the ground truth (SE(3), Umeyama), its scale is its own.",
    "sim3": "One camera knows no scale: the estimate is rotated, shifted and scaled to the ground truth "
    "(Sim(3), Umeyama).",
}


@dataclass(frozen=True)
class Recording:
    """What was replayed, for the page's head.

    name: of the bag.  mode: of the odometry.  frames: their number.  seconds: from the first to the last stamp.
    size: width and height.  truth: ground truth, or None.  warnings: sentences.  command: argument list.
    """

    name: str
    mode: str
    frames: int
    seconds: float
    size: tuple[int, int] | None = None
    truth: Trajectory | None = None
    warnings: tuple[str, ...] = ()
    command: tuple[str, ...] = field(default=())


def write_report(path: Path, recording: Recording, evaluations: Sequence[Evaluation]) -> None:
    """Write the page to `path`, all at once."""
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(_parts(recording, evaluations))
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def _parts(recording: Recording, evaluations: Sequence[Evaluation]) -> dict[str, str]:
    errors = [entry.error for entry in evaluations if entry.error is not None]
    reasons = sorted({f"{entry.run.features}: {entry.error.reason}" for entry in evaluations
                      if entry.error is not None and entry.error.reason})
    notes = [*recording.warnings, *reasons, *(f"{entry.run.features}: {note}" for entry in evaluations
                                              for note in entry.run.notes)]
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    machine = provenance.machine()
    return {
        "title": f"Replay of {escape(recording.name)}",
        "subtitle": f"{len(evaluations)} kinds of features, {_how(evaluations)}",
        "facts": "".join(f"<li>{escape(fact)}</li>" for fact in _facts(recording, evaluations)),
        "notes": f'<div class="notes"><ul>{_items(notes)}</ul></div>' if notes else "",
        "accuracy": _table(*accuracy_rows(evaluations)),
        "alignment": _explain(errors[0].alignment if errors else None, recording),
        "cost": _table(*cost_rows(evaluations)),
        "cost_note": "Stages and total: milliseconds a frame, median / 90th / 99th percentile. CPU: 100 % is one core. "
        "Memory: peak of the process that reads the bag and runs the front-end.",
        "plots": _plots(recording, evaluations),
        "pictures": "".join(_pictures(entry) for entry in evaluations),
        "failures": _failures(evaluations),
        "command": escape(shlex.join(recording.command)),
        "provenance": escape(f"git {provenance.revision() or 'unknown'}; {versions}; {machine['processor']}, "
                             f"{machine['cores']} cores, {machine['system']}"),
    }


def _how(evaluations: Sequence[Evaluation]) -> str:
    if any(entry.run.latency is not None for entry in evaluations):
        return "played live through the ROS 2 nodes"
    return "every frame through the front-end, none dropped"


def _facts(recording: Recording, evaluations: Sequence[Evaluation]) -> list[str]:
    modes = {"rgbd": "RGB-D", "stereo": "stereo", "mono": "one camera", "features": "uncalibrated: features only"}
    most = max((len(entry.run) for entry in evaluations), default=0)
    frames = f"{recording.frames} frames" if most == recording.frames else f"{most} of {recording.frames} frames"
    facts = [modes[recording.mode], frames, f"{recording.seconds:.1f} s"]
    if recording.size is not None:
        facts.append(f"{recording.size[0]}×{recording.size[1]} px")
    truth = "no ground truth" if recording.truth is None else f"ground truth, path {recording.truth.length:.2f} m"
    return [*facts, truth]


def _items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _explain(alignment: str | None, recording: Recording) -> str:
    if recording.mode == "features":
        return "Without a calibration there are features and tracks, but no trajectory."
    if alignment is None:
        return "Without ground truth there is no trajectory error."
    return (
        f"{_ALIGNMENTS[alignment]} ATE: root mean square of the position error; RPE: of the relative motion over one "
        "frame and over one second. Poses and ground truth are matched by stamp (20 ms)."
    )


def _table(titles: list[str], rows: list[list[str]]) -> str:
    columns = list(zip(*rows))
    best = [_best(title, column) for title, column in zip(titles, columns)]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = ""
    for k, row in enumerate(rows):
        swatch = f'<span class="swatch" style="background:{plots.COLOURS[k % len(plots.COLOURS)]}"></span>'
        cells = "".join(
            f'<td{" class=best" if k in winners else ""}>{swatch if column == 0 else ""}{escape(cell)}</td>'
            for column, (cell, winners) in enumerate(zip(row, best))
        )
        body += f"<tr>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _best(title: str, column: Sequence[str]) -> set[int]:
    """Rows with the best value of a column that has one; none where all are alike."""
    choose = next((choose for start, choose in _BEST.items() if title.startswith(start)), None)
    if choose is None:
        return set()
    values = {k: float(cell.split("/")[0]) for k, cell in enumerate(column) if cell != "–"}
    if len(set(values.values())) < 2:
        return set()
    return {k for k, value in values.items() if math.isclose(value, choose(values.values()))}


def _plots(recording: Recording, evaluations: Sequence[Evaluation]) -> str:
    stage = plots.stage_plot(evaluations)
    groups = {
        "Paths": plots.trajectory_plots(evaluations, recording.truth),
        "Frame by frame": plots.curve_plots(evaluations),
        "Where the time goes": [stage] if stage is not None else [],
    }
    return "".join(
        f'<h2>{title}</h2><div class="grid">{"".join(_image(*plot) for plot in made)}</div>'
        for title, made in groups.items() if made
    )


def _image(title: str, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _pictures(entry: Evaluation) -> str:
    if not entry.run.overlays:
        return ""
    begin = int(entry.run.stamps[0])
    figures = "".join(
        f'<figure><img loading="lazy" alt="tracked keypoints" src="data:image/jpeg;base64,{_jpeg(picture)}">'
        f"<figcaption>{(stamp - begin) * 1e-9:.2f} s</figcaption></figure>"
        for stamp, picture in entry.run.overlays.items()
    )
    return f'<h3>{escape(entry.run.features)}</h3><div class="pictures">{figures}</div>'


def _jpeg(picture: np.ndarray) -> str:
    height, width = picture.shape[:2]
    if width > _PICTURE_WIDTH:
        size = (_PICTURE_WIDTH, round(height * _PICTURE_WIDTH / width))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return base64.b64encode(data).decode()


def _failures(evaluations: Sequence[Evaluation]) -> str:
    lists = [
        f"<h3>{escape(entry.run.features)}: {len(entry.run.errors)} frames</h3>"
        f"<ul>{_items([f'{stamp * 1e-9:.3f} s: {text}' for stamp, text in entry.run.errors[:_LISTED_FAILURES]])}</ul>"
        for entry in evaluations if entry.run.errors
    ]
    return f"<h2>Frames that could not be used</h2>{''.join(lists)}" if lists else ""
