"""``check_scene``: whether poses, depth and intrinsics of posed scenes fit together; a table, verdicts, pictures."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.progress import progress_of_parts
from kp_frontend.resources import make_folders
from kp_frontend.terminal import table_console

if TYPE_CHECKING:
    from kp_training.data.posed import PosedScene
    from kp_training.evaluation.scene_check.check import PairCheck, SceneCheck

HEIGHT, WIDTH = 240, 320
"""Of rooms."""
WIDE = 130


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_args(argv)
    if min(options.stride) < 1:
        raise InputError(f"--stride {min(options.stride)}: expected 1 or more")
    from kp_training.data import SCENE_SOURCES, open_scenes
    from kp_training.evaluation.scene_check.check import check_scene

    given = options.path.partition(":")[0] in SCENE_SOURCES
    scenes = open_scenes([options.path if given else f"posed:{options.path}"], HEIGHT, WIDTH)
    make_folders(options.output, options.json and options.json.parent)
    checks, refused = [], []
    with progress_of_parts("scenes", len(scenes)) as begin:
        for scene in scenes:
            try:
                checks.append(check_scene(scene, options.stride, begin(scene.name)))
            except InputError as error:
                refused.append(str(error))
                continue
            if options.output is not None:
                _draw(scene, checks[-1], options.output)
    if not checks:
        raise InputError("; ".join(refused))
    _show(checks, refused)
    _write(options, checks, refused)
    return 0


def _show(checks: Sequence[SceneCheck], refused: Sequence[str]) -> None:
    console = table_console(WIDE)
    for has_depth in (True, False):
        shown = [check for check in checks if check.has_depth == has_depth]
        if shown:
            console.print(_table(shown, has_depth))
    marks = {True: ("yes", "green"), False: ("NO ", "red"), None: ("?  ", "yellow")}
    lines = [(_numbers(check), *marks[check.good], check.verdict) for check in checks]
    for numbers, mark, style, verdict in [*lines, *(("", *marks[False], line) for line in refused)]:
        console.out(numbers, highlight=False, end="\n" * bool(numbers))
        console.out(mark, style=style, highlight=False, end=" ")
        console.out(verdict, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "check_scene",
        description="Look whether the poses, depth and intrinsics of posed scenes fit together: frames are compared "
                    "with others so many frames away (scenes without order: with the one nearest in view). With depth, "
                    "the points of one are looked for in the other, where the depth must be theirs, up to 5 cm (1 % "
                    "beyond 5 m; 2 % in scenes of unknown unit); without, matches of SIFT must lie within 2 pixels of "
                    "their epipolar lines. Where they do not, the usual mistakes in conventions are tried, and one "
                    "that explains it is named.",
        epilog="Exit code 0 whatever the verdicts (see them in --json), 2 where no scene can be read.",
    )
    add = parser.add_argument
    add("path", metavar="PATH", help="a scene folder of any layout, a folder of such, a bag, or rooms[:COUNT]")
    add("--stride", type=int, nargs="+", metavar="N", default=[1, 3, 10], help="frames apart (default 1 3 10)")
    add("--output", type=Path, metavar="DIR", help="folder for pictures: a pair of each stride and scene")
    add("--json", type=Path, metavar="FILE", help="write all figures, pair by pair")
    return parser


def _numbers(check: SceneCheck) -> str:
    """What a scene is, in a line."""
    unit = " m" if check.metric else ""
    low, middle, high = check.depth_quantiles
    depth = (f", depth {middle:.3g}{unit} (5 to 95 %: {low:.3g} to {high:.3g}), {check.depth_known:.0%} known"
             if check.has_depth else ", no depth")
    lost = f", {check.unreadable} of those looked at cannot be read" if check.unreadable else ""
    return (f"{check.name}: {check.frames} frames{lost}, {check.size[0]}×{check.size[1]}, fx {check.intrinsics[0]:.0f}"
            f"{depth}, " + (f"path {check.path:.3g}{unit}" if check.ordered else "in no order"))


def _table(checks: Sequence[SceneCheck], has_depth: bool) -> Any:
    """Scenes with depth, or those without, a row a stride with the medians over its pairs."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("scene", overflow="fold")
    for name in ("stride", "pairs", *(("overlap", "hidden", "agree", "grey", "shuffled") if has_depth
                                      else ("matches", "from line", "within 2 px"))):
        table.add_column(name, justify="right", no_wrap=True)
    for check in checks:
        for number, stride in enumerate(sorted({pair.stride for pair in check.pairs})):
            pairs = [pair for pair in check.pairs if pair.stride == stride]
            name = "" if number else check.name
            table.add_row(name, str(stride or "nearest"), str(len(pairs)), *_cells(pairs, has_depth))
    return table


def _cells(pairs: Sequence[PairCheck], has_depth: bool) -> list[str]:
    formats = ({"overlap": ".0%", "hidden": ".0%", "agree": ".0%", "grey": ".0f", "shuffled": ".0f"} if has_depth
               else {"compared": ".0f", "distance": ".2f", "agree": ".0%"})
    return [_median([getattr(pair, name) for pair in pairs], style) for name, style in formats.items()]


def _median(values: Sequence[float], style: str) -> str:
    known = [value for value in values if not np.isnan(value)]
    return format(float(np.median(known)), style) if known else "–"


def _draw(scene: PosedScene, check: SceneCheck, folder: Path) -> None:
    """Of each stride, the pair whose agreement is the median."""
    import cv2

    from kp_training.evaluation.scene_check.check import View, matched_points
    from kp_training.evaluation.scene_check.pictures import draw_depth, draw_lines
    from kp_training.evaluation.scene_check.reprojection import fundamental_matrix, line_distances

    for stride in sorted({pair.stride for pair in check.pairs}):
        pairs = sorted((pair for pair in check.pairs if pair.stride == stride and pair.compared),
                       key=lambda pair: pair.agree)
        if not pairs:
            continue
        pair = pairs[len(pairs) // 2]
        frames = scene[pair.first], scene[pair.second]
        title = f"{check.name}: {scene.names[pair.first]} and {scene.names[pair.second]}, {pair.agree:.0%} agree"
        if scene.has_depth:
            picture = draw_depth(*frames, scene.metric, title)
        else:
            points = matched_points(*map(View, frames))
            picture = draw_lines(*frames, points, line_distances(fundamental_matrix(*frames), *points), title)
        name = re.sub("[^A-Za-z0-9._-]", "_", f"{check.name}_{stride or 'near'}.png")
        if not cv2.imwrite(str(folder / name), picture):
            raise InputError(f"cannot write {folder / name}; is the disk full?")


def _write(options: argparse.Namespace, checks: Sequence[SceneCheck], refused: Sequence[str]) -> None:
    if options.json is None:
        return
    from kp_frontend.replay.provenance import revision, versions
    from kp_frontend.replay.summary import without_nan

    content = {"command": "check_scene", "path": options.path, "revision": revision(), "versions": versions(),
               "scenes": [asdict(check) for check in checks], "unreadable": list(refused)}
    try:
        options.json.write_text(json.dumps(without_nan(content), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {options.json} ({error.strerror}); make room or give another file") from error
