"""``benchmark model``: what a frame costs by engine, precision, size and points, with parity and accuracy beside."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.benchmarks.report import Report, add_report_options, frame_rows, show_targets
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.model_file import CHOICES
from kp_frontend.progress import Progress, progress_of_parts
from kp_frontend.terminal import table_console
from kp_training.cli.benchmark_measured import WIDTH
from kp_training.cli.image_size import read_size

if TYPE_CHECKING:
    from rich.table import Table

    from kp_training.benchmarks.model import ModelFigures
    from kp_training.benchmarks.model_files import Subject, Variant

PARTS = ("before", "network", "after")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark model``."""
    add = parser.add_argument
    add("--features", nargs="+", metavar="NAME", default=[],
        help="models by name, .onnx or .ckpt files, or a method's name for its untrained network, whose time is right "
        "and whose accuracy means nothing; default: every model that ships, and superpoint")
    add("--backends", nargs="+", metavar="B", default=[], help="default: all that run here")
    add("--precisions", nargs="+", default=CHOICES["precision"], choices=CHOICES["precision"],
        help="files that do not ship are exported from NAME.ckpt beside NAME.onnx (default: all)")
    add("--profiles", nargs="+", default=CHOICES["profile"], choices=CHOICES["profile"], help="default: both")
    add("--sizes", nargs="+", metavar="HEIGHTxWIDTH", default=["480x640"],
        help="of the images, height first (default 480x640, for images that are 640 wide)")
    add("--top-k", nargs="+", type=int, metavar="K", default=[1000], help="points (default 1000)")
    add("--pairs", type=int, default=18, help="of photographs, for the accuracy; 0 = none (default %(default)s)")
    add("--repeats", type=int, default=30, help="runs of each row; slow rows make fewer (default %(default)s)")
    add_report_options(parser)


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure and show; raises InputError for what cannot be used, and where no row runs."""
    from kp_frontend.engines import BACKENDS
    from kp_training.benchmarks.model import baseline_rows, measure, network_rows, usable
    from kp_training.benchmarks.model_files import REFERENCE, find_subject
    from kp_training.benchmarks.model_goals import judge
    from kp_training.benchmarks.model_process import Processes

    report, sizes = Report(options), [read_size("--sizes", text) for text in options.sizes]
    _check(options)
    subjects, refused = [find_subject(name) for name in options.features or _default()], []
    console = table_console(WIDTH)
    with (
        tempfile.TemporaryDirectory(prefix="kp_benchmark_") as folder, Processes() as processes,
        progress_of_parts("parts", len(subjects) + 2, console) as begin,
    ):
        backends = usable(processes, options.backends or list(BACKENDS), _any_file(subjects), refused)
        files = _files(subjects, _variants(options, backends), Path(folder), begin, refused)
        rows = baseline_rows(sizes, options.top_k)
        for subject, of_subject in files.items():
            rows += network_rows(subject, of_subject, backends, sizes, options.top_k)
        references = {subject.name: found[REFERENCE] for subject, found in files.items() if REFERENCE in found}
        measured = measure(processes, rows, references, options.pairs, options.repeats, begin, refused)
    if not measured:
        raise InputError(f"nothing could be measured: {'; '.join(refused)}")
    console.print(table(measured))
    for each in measured:
        if each.row.kind == "matching":
            console.print(f"{each.row.features}: {each.whole.p50:.2f} ms (p90 {each.whole.p90:.2f})", highlight=False)
    for reason in refused:
        console.print(f"left out: {reason}", highlight=False)
    targets = judge(measured)
    show_targets(console, targets)
    written = {"results": [each.written() for each in measured], "left_out": refused, "targets": targets}
    medians = {each.row.name: each.whole.p50 for each in measured}
    report.conclude(console, ["kp_training", "benchmark", *argv], written, medians, lambda axes: _draw(axes, measured))
    return 0


def _default() -> list[str]:
    from kp_training.benchmarks.model_files import default_subjects

    return default_subjects()


def _check(options: argparse.Namespace) -> None:
    from kp_frontend.engines import BACKENDS

    for backend in options.backends:
        if backend not in BACKENDS:
            raise unknown_name("backend", backend, BACKENDS)
    for option, value, least in (("--repeats", options.repeats, 1), ("--pairs", options.pairs, 0),
                                 ("--top-k", min(options.top_k), 1)):
        if value < least:
            raise InputError(f"{option} {value}: expected {least} or more")


def _any_file(subjects: Sequence[Subject]) -> Path:
    """A model file to try the backends with."""
    from kp_frontend.resources import find_resource, model_names

    given = [subject.file for subject in subjects if subject.file is not None]
    return given[0] if given else find_resource("models", f"{(model_names() or ['kp2d_compact'])[0]}.onnx")


def _files(
    subjects: Sequence[Subject], variants: Sequence[Variant], folder: Path, begin: Callable[[str], Progress],
    refused: list[str],
) -> dict[Subject, dict[Variant, Path]]:
    """The files of each subject; those that cannot be made go to `refused`, with the reason."""
    from kp_frontend.isolated import Ended, call_isolated
    from kp_training.benchmarks.model_files import REFERENCE, make_files, own_variant

    found: dict[Subject, dict[Variant, Path]] = {subject: {} for subject in subjects}
    for subject in subjects:
        asked = list(dict.fromkeys([REFERENCE, *own_variant(subject), *variants]))
        progress = begin(f"files of {subject.name}")
        try:
            made = call_isolated(make_files, subject, asked, folder, progress=progress)
        except (MemoryError, Ended) as error:
            made = dict.fromkeys(asked, str(error) or "not enough memory")
        found[subject] = {variant: file for variant, file in made.items() if isinstance(file, Path)}
        refused += [f"{subject.name} {variant}: {file}" for variant, file in made.items() if isinstance(file, str)]
    return found


def _variants(options: argparse.Namespace, backends: Sequence[str]) -> list[Variant]:
    """What there is to be of each subject."""
    from kp_training.benchmarks.model_files import Variant

    targets = dict.fromkeys("tensorrt" if backend == "tensorrt" else "cpu" for backend in backends)
    points = [0] * ("dense" in options.profiles) + list(options.top_k) * ("sparse" in options.profiles)
    return [Variant(precision, target, top_k) for precision in options.precisions
            for target in (targets if precision == "int8" else ("",)) for top_k in points]


def table(measured: Sequence[ModelFigures]) -> Table:
    """The figures as they are shown."""
    from rich import box
    from rich.table import Table

    from kp_training.benchmarks.model_rows import METRICS

    sizes = list(dict.fromkeys(f"{each.row.width}×{each.row.height}" for each in measured if each.row.height))
    one_size = len(sizes) == 1
    title = "A frame, image in → keypoints and descriptors in hand, ms" + f"; {sizes[0]}" * one_size
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True, title_justify="left",
                  caption_justify="left",
                  caption="1 px: share of the fp32 dense file's keypoints (onnxruntime) that are found within a pixel; "
                  "cos: median cosine of their descriptors; M.Score, MMA@3, Cor-3: of a few pairs, to see a wrong "
                  "engine by, not for publication; untrained networks have none")
    for name in ("features", "file", "engine"):
        shown.add_column(name, no_wrap=True)
    for name in (*["size"] * (not one_size), "points", "p50", "p90", *PARTS, "1 px", "cos", *METRICS):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in measured:
        row, facts = each.row, each.facts
        if row.kind == "matching":
            continue
        times = [each.whole.p50, each.whole.p90, *(each.parts[name].p50 if name in each.parts else None
                                                   for name in PARTS)]
        parity = [facts.within, facts.cosine] if facts.within == facts.within else [None, None]
        shares = [*parity, *(facts.accuracy.get(name) for name in METRICS)]
        shown.add_row(
            row.features, row.label, _short(facts.engine), *[f"{row.width}×{row.height}"] * (not one_size),
            f"{facts.keypoints:.0f}", *("" if value is None else f"{value:.2f}" for value in times),
            *("" if value is None else f"{value:.3f}" for value in shares),
        )
    return shown


def _short(engine: str) -> str:
    """``openvino (CPU, bf16)`` → ``openvino bf16``."""
    return engine.replace(" (CPU, ", " ").removesuffix(" (CPU)").removesuffix(")") if "(CPU" in engine else engine


def _draw(axes: Any, measured: Sequence[ModelFigures]) -> None:
    """A point for each frame time, and its p90: on a logarithmic axis parts of a bar would mislead."""
    from matplotlib.ticker import LogLocator, NullFormatter

    frames = [each for each in measured if each.row.kind != "matching"]
    names, medians = [each.row.name for each in frames], [each.whole.p50 for each in frames]
    axes.hlines(names, medians, [each.whole.p90 for each in frames], color="0.7", label="p90")
    axes.plot(medians, names, "o", markersize=5, label="median")
    for name, value in zip(names, medians):
        axes.annotate(f"{value:.3g}", (value, name), (-6, 0), textcoords="offset points", ha="right", va="center",
                      fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(medians) / 2, None)
    frame_rows(axes, len(frames), "A frame, image in → keypoints and descriptors in hand")
    axes.legend(fontsize=8)
