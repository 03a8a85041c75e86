"""One call of the replay command: every kind of features over one recording, then tables, figures and the report."""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from kp_frontend.errors import InputError
from kp_frontend.isolated import Ended
from kp_frontend.progress import Progress, progress_bar
from kp_frontend.replay import provenance
from kp_frontend.replay.bag import BagOptions, BagSequence
from kp_frontend.replay.evaluation import evaluate
from kp_frontend.replay.feature_archive import read_features
from kp_frontend.replay.isolated import run_isolated
from kp_frontend.replay.offline import RunOptions
from kp_frontend.replay.report import Recording, write_report
from kp_frontend.replay.result import RunResult
from kp_frontend.replay.summary import Evaluation, accuracy_rows, cost_rows, table, write_json
from kp_frontend.replay.trajectory import write_tum
from kp_frontend.resources import make_folders
from kp_frontend.terminal import show_line, table_console
from kp_frontend.trackers import load_tracker

_PLAIN_WIDTH = 240  # of tables that go to a file or a pipe
_FOLDERS = ("trajectories", "overlays")


def replay(options: argparse.Namespace, argv: list[str]) -> None:
    """Do what the `options` of command.py say; argv: as given, for the report.

    Raises InputError; where some features could not be run, after everything is written for the others.
    """
    specs = list(dict.fromkeys(options.features))
    if len({_slug(spec) for spec in specs}) < len(specs):
        raise InputError(f"--features {' '.join(specs)}: two of them would write to files of the same name")
    for spec in specs:  # a wrong name should not come up after minutes
        load_tracker(spec, top_k=options.top_k, backend=options.backend)
    if options.json is not None and options.json.is_dir():
        raise InputError(f"--json {options.json} is a folder, expected a file to write")
    console = table_console(_PLAIN_WIDTH)
    with BagSequence(options.bag, _bag_options(options)) as sequence:
        make_folders(*(options.output / name for name in _FOLDERS), options.json and options.json.parent)
        for warning in sequence.warnings:
            show_line(console, "note:", "yellow", warning)
        evaluations, failed = [], {}
        for spec in specs:
            try:
                with progress_bar(spec) as bar:
                    run = _run(sequence, spec, options, bar.reach)
            except (InputError, MemoryError, Ended) as error:
                failed[spec] = str(error) or "out of memory"
                continue
            _write_run(options.output, run)  # first, so that an evaluation that fails does not cost the trajectory
            evaluations.append(_evaluate(sequence, run))
        if evaluations:
            _finish(console, sequence, evaluations, failed, options, argv)
    if failed:
        raise InputError("; ".join(_failures(failed)))


def _failures(failed: dict[str, str]) -> list[str]:
    return [f"{spec}: {message}" for spec, message in failed.items()]


def _bag_options(options: argparse.Namespace) -> BagOptions:
    body = options.body_from_camera
    return BagOptions(
        image=options.image, info=options.info, depth=options.depth, right=options.right, right_info=options.right_info,
        calibration=options.calibration, ground_truth=options.ground_truth,
        body_from_camera=tuple(body) if body else None, mode=options.mode,
    )


def _run(sequence: BagSequence, spec: str, options: argparse.Namespace, progress: Progress) -> RunResult:
    saved = options.output / "features" / f"{_slug(spec)}.npz" if options.save_features else None
    how = RunOptions(options.top_k, options.backend, options.max_frames, save_features=saved)
    if not options.live:
        return run_isolated(sequence.path, sequence.options, spec, how, progress)
    from kp_frontend.replay.live import run_live

    live = run_live(sequence, spec, how, rate=options.rate, progress=progress)
    if not options.compare:
        return live.run
    from kp_frontend.replay.live import compare

    with tempfile.TemporaryDirectory(prefix="kp_frontend_replay_") as folder:
        archive = Path(folder) / "features.npz"
        run_isolated(sequence.path, sequence.options, spec, replace(how, save_features=archive, overlays=0), progress)
        found = compare(live.features, read_features(archive))
    note = (
        f"{found.same} of {found.frames} live frames have the very features of the offline run, "
        f"{100 * found.share:.2f} % of all keypoints within {found.tolerance:g} px"
    )
    return replace(live.run, notes=(*live.run.notes, note))


def _evaluate(sequence: BagSequence, run: RunResult) -> Evaluation:
    if sequence.ground_truth is None or sequence.mode == "features":
        return Evaluation(run)
    alignment = "sim3" if sequence.mode == "mono" else "se3"
    return Evaluation(run, evaluate(run.trajectory, sequence.ground_truth, alignment))


def _write_run(folder: Path, run: RunResult) -> None:
    """Trajectory and pictures of one run."""
    slug = _slug(run.features)
    if len(run.trajectory):
        write_tum(folder / "trajectories" / f"{slug}.txt", run.trajectory)
    for stamp, picture in run.overlays.items():
        cv2.imwrite(str(folder / "overlays" / f"{slug}_{stamp}.png"), picture)


def _finish(
    console: Any, sequence: BagSequence, evaluations: list[Evaluation], failed: dict[str, str],
    options: argparse.Namespace, argv: list[str],
) -> None:
    """Tables, results.json and the report; failed: features that could not be run, and why."""
    seconds = float(sequence.stamps[-1] - sequence.stamps[0]) * 1e-9
    recording = Recording(
        options.bag.resolve().name, sequence.mode, len(sequence), seconds,
        (sequence.camera.width, sequence.camera.height) if sequence.camera is not None else None,
        sequence.ground_truth, (*sequence.warnings, *_failures(failed)),
        ("python", "-m", "kp_frontend", "replay", *argv),
    )
    if sequence.ground_truth is not None:
        write_tum(options.output / "trajectories" / "ground_truth.txt", sequence.ground_truth)
    title = f"{recording.name}: {sequence.mode}, {max(len(entry.run) for entry in evaluations)} frames"
    for heading, (titles, rows) in {
        f"{title}; means a frame, ATE and RPE are root mean squares": accuracy_rows(evaluations),
        "milliseconds a frame: median/90th/99th percentile": cost_rows(evaluations),
    }.items():
        console.print(table(heading, titles, rows, console.width))
    for entry in evaluations:
        for text in _remarks(entry):
            show_line(console, f"{entry.run.features}:", "yellow", text)
    content = {
        "recording": {"bag": str(options.bag), "mode": sequence.mode, "frames": len(sequence),
                      "seconds": recording.seconds, "topics": vars(sequence.topics), "warnings": sequence.warnings},
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "versions": provenance.versions(), "machine": provenance.machine(), "revision": provenance.revision(),
        "results": [entry.to_json() for entry in evaluations], "failed": failed,
    }
    for path in filter(None, (options.output / "results.json", options.json)):
        write_json(path, content)
    write_report(options.output / "report.html", recording, evaluations)
    console.print(f"report: {options.output / 'report.html'}", highlight=False)


def _remarks(entry: Evaluation) -> list[str]:
    remarks = list(entry.run.notes)
    if entry.error is not None and entry.error.reason:
        remarks.append(entry.error.reason)
    if errors := entry.run.errors:
        remarks.append(f"{len(errors)} frames could not be used, the first: {errors[0][1]}")
    return remarks


def _slug(spec: str) -> str:
    """A file name for a features spec."""
    return re.sub(r"[^\w.=-]+", "_", re.sub(r"^.*/|\.onnx", "", spec))
