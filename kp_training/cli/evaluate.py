"""``evaluate``: extractors scored by the papers' protocols; a table on the terminal, JSON by pair, pictures."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from kp_frontend.errors import InputError, unknown_name


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    if argv and not argv[0].startswith("-") and argv[0] not in BENCHMARKS:
        raise unknown_name("benchmark", argv[0], BENCHMARKS)
    options = _parser().parse_args(argv)
    return BENCHMARKS[options.benchmark](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("evaluate", description="Score extractors by the protocols of the papers.")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    homography = benchmarks.add_parser(
        "homography", help="pairs of images with a known homography (HPatches, Oxford, or made from photographs)"
    )
    add = homography.add_argument
    add("folder", nargs="?", help="same as --data")
    add("--data", metavar="DIR", help="folder of sequences (1.png …, H_1_2 …), or of photographs (photos:DIR)")
    add("--features", nargs="+", required=True, metavar="NAME_OR_MODEL",
        help="orb, sift, rootsift, a model's name or path, options after a colon")
    add("--preset", nargs="+", default=["shared"],
        help="protocols, a table each: shared (ours, default), kp2d, silk, d2net")
    add("--size", help="WIDTHxHEIGHT that images are stretched to, shortN or full, instead of the preset's own")
    add("--top-k", type=int, help="points an image, instead of the preset's own")
    add("--pairs", type=int, help="how many pairs to make from photographs (default 300)")
    add("--seed", type=int, help="of the pairs made from photographs (default 0)")
    add("--jobs", type=int, help="processes (default: one a core); the figures do not depend on it")
    add("--json", type=Path, metavar="FILE", help="write all figures, pair by pair")
    add("--output", type=Path, metavar="DIR", help="folder for results.json, mma.png and pictures of the worst pairs")
    return parser


def evaluate_homography(options: argparse.Namespace) -> int:
    """Tables, JSON and pictures of the homography benchmark; all that can be wrong is said before the work."""
    from kp_training.evaluation.homography import cached_extractor, evaluate, open_pairs
    from kp_training.evaluation.protocols import PRESETS, choose_setting
    from kp_training.evaluation.report import conclude, print_table, to_json
    from kp_training.evaluation.sequences import Size

    for preset in options.preset:
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS)
    size = Size.parse(options.size) if options.size else None
    settings = [choose_setting(preset, size, options.top_k) for preset in dict.fromkeys(options.preset)]
    features = list(dict.fromkeys(options.features))
    jobs = _jobs(options.jobs)
    source = open_pairs(_one_folder(options), options.pairs, options.seed)
    counts = [sum(source.units(setting.protocol.left_out).values()) for setting in settings]
    if not all(counts):
        raise InputError(f"{_one_folder(options)} holds only sequences that preset d2net leaves out")
    for setting in settings:
        for spec in features:
            cached_extractor(spec, setting.protocol.pool * setting.top_k)
    _make_folders(options)

    with _progress() as bar:
        task = bar.add_task("pairs", total=sum(counts) * len(features))
        results = evaluate(source, features, settings, jobs, lambda pairs: bar.advance(task, pairs))
    outcomes = [conclude(setting, results[setting.preset]) for setting in settings]
    for outcome in outcomes:
        print_table(outcome, str(source))
    _write(options, source, outcomes, to_json(outcomes))
    return 0


BENCHMARKS = {"homography": evaluate_homography}


def _one_folder(options: argparse.Namespace) -> str:
    given = [folder for folder in (options.folder, options.data) if folder is not None]
    if len(given) != 1:
        raise InputError("give the folder of sequences once: `evaluate homography DIR` or `--data DIR`")
    return given[0]


def _jobs(asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise InputError(f"--jobs {asked}: expected at least 1")
    return asked or len(os.sched_getaffinity(0))


def _progress():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _make_folders(options: argparse.Namespace) -> None:
    for folder in (options.output, options.json and options.json.parent):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make folder {folder} ({error.strerror}); give another one") from error


def _write(options: argparse.Namespace, source, outcomes: Sequence, figures: dict) -> None:
    from kp_frontend.replay.provenance import revision, versions
    from kp_training.evaluation.figures import draw_worst, plot_curves

    report = {"benchmark": "homography", "data": str(source), "revision": revision(), "versions": versions(), **figures}
    text = json.dumps(report, indent=1) + "\n"
    try:
        if options.json is not None:
            options.json.write_text(text)
        if options.output is not None:
            (options.output / "results.json").write_text(text)
            plot_curves(outcomes, options.output / "mma.png")
            draw_worst(source, outcomes, options.output / "worst")
    except OSError as error:
        advice = "make room or give another folder"
        raise InputError(f"cannot write {error.filename or options.output} ({error.strerror}); {advice}") from error
