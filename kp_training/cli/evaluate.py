"""``evaluate``: extractors scored by the papers' protocols; a table on the terminal, JSON by pair, curves."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kp_frontend.errors import InputError, unknown_name

Averages = dict[str, dict[str, float]]


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    if argv and not argv[0].startswith("-") and argv[0] not in BENCHMARKS:
        raise unknown_name("benchmark", argv[0], BENCHMARKS)
    options = _parser().parse_args(argv)
    return BENCHMARKS[options.benchmark](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("evaluate", description="Score extractors by the protocols of the papers.")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    homography = benchmarks.add_parser("homography", help="pairs of images with a known homography (HPatches, Oxford)")
    homography.add_argument("folder", nargs="?", type=Path, help="same as --data")
    homography.add_argument("--data", type=Path, metavar="DIR", help="folder of sequences (1.png …, H_1_2 …)")
    homography.add_argument("--features", nargs="+", required=True, metavar="NAME_OR_MODEL",
                            help="orb, sift, rootsift, a model's name or path, options after a colon")
    homography.add_argument("--preset", nargs="+", default=["shared", "kp2d"],
                            help="protocols, a table each: shared, kp2d (default: both)")
    homography.add_argument("--size", default="640x480", help="WIDTHxHEIGHT that images are stretched to, or 'full'")
    homography.add_argument("--top-k", type=int, default=1000, help="points an image (default 1000)")
    homography.add_argument("--json", type=Path, metavar="FILE", help="write all figures, pair by pair")
    homography.add_argument("--output", type=Path, metavar="DIR", help="folder for results.json and MMA curves")
    return parser


def evaluate_homography(options: argparse.Namespace) -> int:
    """Tables, JSON and curves of the homography benchmark."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kp_frontend import load_extractor
    from kp_training.evaluation.homography import PRESETS, averages, evaluate, find_sequences

    folder, size = _one_folder(options), parse_size(options.size)
    for preset in options.preset:
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS)
    if options.top_k < 1:
        raise InputError(f"--top-k {options.top_k}: expected at least 1")
    sequences = find_sequences(folder)
    for spec in options.features:
        load_extractor(spec, top_k=options.top_k)  # a wrong name is said before minutes of work
    pairs = sum(1 for sequence in sequences for _ in sequence.glob("H_1_*"))
    results: dict[str, dict[str, list[dict]]] = {preset: {} for preset in options.preset}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        for spec in options.features:
            task = bar.add_task(Path(spec).name, total=pairs * len(options.preset))
            load: Callable[[int], Any] = partial(_load, load_extractor, spec)
            for preset in options.preset:
                advance = partial(bar.advance, task)
                results[preset][spec] = evaluate(sequences, load, preset, size, options.top_k, advance)
    means = {preset: {spec: averages(rows) for spec, rows in by_spec.items()} for preset, by_spec in results.items()}
    for preset, by_spec in means.items():
        _print_table(preset, PRESETS[preset].columns, by_spec, options)
    _write(options, results, means)
    return 0


BENCHMARKS = {"homography": evaluate_homography}


def _load(load_extractor: Callable[..., Any], spec: str, top_k: int) -> Any:
    return load_extractor(spec, top_k=top_k)


def _one_folder(options: argparse.Namespace) -> Path:
    given = [folder for folder in (options.folder, options.data) if folder is not None]
    if len(given) != 1:
        raise InputError("give the folder of sequences once: `evaluate homography DIR` or `--data DIR`")
    return given[0]


def parse_size(text: str) -> tuple[int, int] | None:
    """(width, height) of ``640x480``; None of ``full``; InputError for anything else."""
    if text == "full":
        return None
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not found or min(int(side) for side in found.groups()) < 32:
        raise InputError(f"--size {text}: expected WIDTHxHEIGHT of at least 32 each, as in 640x480, or full")
    return int(found[1]), int(found[2])


def _print_table(
    preset: str, columns: Sequence[str], by_spec: dict[str, Averages], options: argparse.Namespace
) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"homography, preset {preset}, {options.size}, {options.top_k} points"
    table = Table("sequence", "features", title=title, caption="LE: pixels; Rep, MMA, M.Score, Cor: shares")
    for column in columns:
        table.add_column(column, justify="right")
    sequences = list(next(iter(by_spec.values())))
    for sequence in sequences:
        for spec, means in by_spec.items():
            table.add_row(sequence, Path(spec).name, *(_number(means[sequence][column]) for column in columns))
        table.add_section()
    console = Console()
    # Piped into a file or a log, a table is as wide as it needs to be.
    console.print(table) if console.is_terminal else Console(width=160).print(table)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if value >= 20 else f"{value:.3f}"


def _write(options: argparse.Namespace, results: dict, means: dict) -> None:
    from kp_training.runs import git_revision

    report = {"benchmark": "homography", "size": options.size, "top_k": options.top_k, "revision": git_revision(),
              "pairs": results, "means": means}
    text = json.dumps(_finite(report), indent=1) + "\n"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(text)
        if "shared" in means:
            _plot_curves(means["shared"], options.output / "mma.png")


def _finite(value: Any) -> Any:
    """`value` with nan and infinities as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plot_curves(by_spec: dict[str, Averages], path: Path) -> None:
    """Mean matching accuracy over the threshold, a panel for each sequence and the mean (at most six)."""
    from matplotlib.figure import Figure

    from kp_training.evaluation.homography import CURVE

    panels = list(next(iter(by_spec.values())))
    panels = panels if len(panels) <= 6 else panels[-1:]
    figure = Figure(figsize=(3.2 * len(panels), 3.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        for spec, means in by_spec.items():
            axes.plot(CURVE, [means[panel][f"MMA@{limit}"] for limit in CURVE], label=Path(spec).name)
        axes.set(title=panel, xlabel="threshold (pixels)", ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean matching accuracy")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
