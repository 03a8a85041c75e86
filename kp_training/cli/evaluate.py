"""``evaluate``: extractors scored by the papers' protocols; a table on the terminal, JSON by pair, pictures."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.progress import progress_bar
from kp_frontend.resources import make_folders
from kp_training.cli.image_size import say_upright

if TYPE_CHECKING:
    from kp_training.evaluation.relative_pose.pairs import PoseSource
    from kp_training.evaluation.sequences import Size


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    if argv and not argv[0].startswith("-") and argv[0] not in BENCHMARKS:
        raise unknown_name("benchmark", argv[0], BENCHMARKS)
    options = _parser().parse_args(argv)
    return BENCHMARKS[options.benchmark].run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("evaluate", description="Score extractors by the protocols of the papers.")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        chosen = benchmarks.add_parser(name, help=benchmark.about, description=benchmark.about)
        chosen.add_argument("folder", nargs="?", help="same as --data")
        chosen.add_argument("--features", nargs="+", required=True, metavar="NAME_OR_MODEL",
                            help="orb, sift, rootsift, a model's name or path, options after a colon")
        chosen.add_argument("--jobs", type=int, help="processes (default: one a core); the figures do not depend on it")
        chosen.add_argument("--json", type=Path, metavar="FILE", help="write all figures, pair by pair")
        benchmark.add_options(chosen)
    return parser


def add_homography(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate homography``."""
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder of sequences (1.png …, H_1_2 …), or of photographs (photos:DIR)")
    add("--preset", nargs="+", default=["shared"],
        help="protocols, a table each: shared (ours, default), kp2d, silk, d2net")
    add("--size", metavar="WIDTHxHEIGHT", help="that images are stretched to, width first, as in 640x480; or shortN, "
        "longN or full; instead of the preset's own")
    add("--top-k", type=int, help="points an image, instead of the preset's own")
    add("--pairs", type=int, help="how many pairs to make from photographs (default 300)")
    add("--seed", type=int, help="of the pairs made from photographs (default 0)")
    add("--output", type=Path, metavar="DIR", help="folder for results.json, mma.png and pictures of the worst pairs")


def add_relative_pose(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate relative_pose``."""
    add = parser.add_argument
    add("--data", metavar="PATH", help="posed scene of any layout, a folder of such, a bag, rooms[:COUNT] (rendered, "
                                       "never trained on), or the images of --pair-list")
    add("--stride", nargs="+", type=int, metavar="N", help="pairs of frames i and i + N (default 5 10)")
    add("--overlap", nargs=2, type=float, metavar=("LO", "HI"),
        help="pairs by the share that both frames see, from depth (default .3 .9 where frames have no order)")
    add("--pair-list", type=Path, metavar="FILE",
        help="pairs as of ScanNet-1500 and YFCC: two paths, two rotation codes, K0, K1, T_0to1 a line")
    add("--pairs", type=int, metavar="N", help="at most so many of each kind (default: all by stride, 300 by overlap)")
    add("--preset", default="shared", help="shared (ours, default), scannet, scannet_refined, yfcc or megadepth")
    add("--solver", nargs="+", default=["poselib", "opencv"], help="poselib, opencv, or both (default)")
    add("--size", metavar="WIDTHxHEIGHT", help="width first, as in 640x480; or shortN, longN or full; instead of the "
        "preset's own")
    add("--top-k", type=int, help="points an image, instead of the preset's own")
    add("--seed", type=int, default=0, help="of estimators and of pairs by overlap (default 0)")
    add("--repeats", type=int, default=3, help="seeds that figures are averaged over (default 3)")
    add("--output", type=Path, metavar="DIR", help="folder for results.json, recall.png and the worst pairs")


def evaluate_homography(options: argparse.Namespace) -> int:
    """Tables, JSON and pictures of the homography benchmark; all that can be wrong is said before the work."""
    from kp_training.evaluation.figures import draw_worst, plot_curves
    from kp_training.evaluation.homography import cached_extractor, evaluate, open_pairs
    from kp_training.evaluation.protocols import PRESETS, choose_setting
    from kp_training.evaluation.report import conclude, print_table, to_json

    for preset in options.preset:
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS)
    size = _size(options.size)
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
    make_folders(options.output, options.json and options.json.parent)

    with progress_bar("pairs", sum(counts) * len(features)) as bar:
        results = evaluate(source, features, settings, jobs, bar.advance)
    outcomes = [conclude(setting, results[setting.preset]) for setting in settings]
    for outcome in outcomes:
        print_table(outcome, str(source))

    def draw(folder: Path) -> None:
        plot_curves(outcomes, folder / "mma.png")
        draw_worst(source, outcomes, folder / "worst")

    _write(options, source, to_json(outcomes), draw)
    return 0


def evaluate_relative_pose(options: argparse.Namespace) -> int:
    """Table, JSON and pictures of the relative pose benchmark; all that can be wrong is said before the work."""
    from kp_training.evaluation.relative_pose.pictures import draw_worst_poses, plot_recall
    from kp_training.evaluation.relative_pose.protocols import choose_pose_setting
    from kp_training.evaluation.relative_pose.report import conclude_poses, poses_to_json, print_poses
    from kp_training.evaluation.relative_pose.scoring import evaluate_poses, open_matcher

    size = _size(options.size)
    setting = choose_pose_setting(options.preset, size, options.top_k, options.solver, options.repeats, options.seed)
    features, jobs = list(dict.fromkeys(options.features)), _jobs(options.jobs)
    setting.estimators()
    for spec in features:
        open_matcher(spec, setting.top_k)
    source = _pose_source(options)
    make_folders(options.output, options.json and options.json.parent)
    with progress_bar("pairs", len(source.pairs) * len(features)) as bar:
        results = evaluate_poses(source, features, setting, jobs, bar.advance)
    outcome = conclude_poses(setting, results, source.metric)
    print_poses(outcome, str(source))

    def draw(folder: Path) -> None:
        plot_recall(outcome, folder / "recall.png")
        draw_worst_poses(source, outcome, folder / "worst")

    _write(options, source, poses_to_json(outcome), draw)
    return 0


def _size(text: str | None) -> Size | None:
    """The size that --size asks for, if it does."""
    from kp_training.evaluation.sequences import Size

    if not text:
        return None
    size = Size.parse(text)
    say_upright("--size", text, size.height, size.width)
    return size


def _pose_source(options: argparse.Namespace) -> PoseSource:
    from kp_training.evaluation.relative_pose.pair_list import ListedPairs
    from kp_training.evaluation.relative_pose.pairs import open_scene_pairs, open_scenes

    data = _one_folder(options)
    if options.pair_list is None:
        return open_scene_pairs(open_scenes(data), options.stride, options.overlap, options.pairs, options.seed)
    if options.stride or options.overlap:
        raise InputError("--pair-list names the pairs: leave --stride and --overlap out")
    return ListedPairs(Path(data).expanduser(), options.pair_list, options.pairs)


@dataclass(frozen=True)
class Benchmark:
    """run: what does it.  add_options: adds what only it takes.  about: one line of help."""

    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]
    about: str


BENCHMARKS = {
    "homography": Benchmark(evaluate_homography, add_homography,
                            "pairs of images with a known homography (HPatches, Oxford, or made from photographs)"),
    "relative_pose": Benchmark(evaluate_relative_pose, add_relative_pose,
                               "pose between two views of a posed scene, or of a list of pairs"),
}


def _one_folder(options: argparse.Namespace) -> str:
    given = [folder for folder in (options.folder, options.data) if folder is not None]
    if len(given) != 1:
        raise InputError(f"give the data once: `evaluate {options.benchmark} DIR` or `--data DIR`")
    return given[0]


def _jobs(asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise InputError(f"--jobs {asked}: expected at least 1")
    return asked or len(os.sched_getaffinity(0))


def _write(options: argparse.Namespace, source: object, figures: dict, draw: Callable[[Path], None]) -> None:
    """JSON where it is wanted, and what `draw` adds to a folder."""
    from kp_frontend.replay.provenance import revision, versions

    report = {"benchmark": options.benchmark, "data": str(source), "revision": revision(), "versions": versions(),
              **figures}
    text = json.dumps(report, indent=1) + "\n"
    try:
        if options.json is not None:
            options.json.write_text(text)
        if options.output is not None:
            (options.output / "results.json").write_text(text)
            draw(options.output)
    except OSError as error:
        advice = "make room or give another folder"
        raise InputError(f"cannot write {error.filename or options.output} ({error.strerror}); {advice}") from error
