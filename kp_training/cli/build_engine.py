"""``build_engine``: a TensorRT engine of an ONNX file, into the cache or a file; and what the cache holds."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kp_frontend.atomic import written_whole
from kp_frontend.engines.tensorrt.cache import BuildOptions, build_engine, clean, entries, folder
from kp_frontend.engines.tensorrt.plan_file import Header, read_header
from kp_frontend.errors import InputError
from kp_frontend.progress import progress_bar
from kp_frontend.resources import find_resource, make_folders
from kp_frontend.terminal import table_console
from kp_training.cli.image_size import read_size

_WIDE = 150
_DAYS = 30.0


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    of_cache = {"list": _list, "clean": _clean}
    if argv and argv[0] in of_cache:
        return of_cache[argv[0]](argv[1:])
    options = _parser().parse_args(argv)
    if bool(options.height) != bool(options.width) or min(options.height, options.width) < 0:
        raise InputError("--height and --width go together, both at least 1: the size of the camera's images")
    path = _model(options.model)
    make_folders(options.json and options.json.parent, options.output and options.output.parent)
    smallest = options.min_size and read_size("--min-size", options.min_size)
    largest = options.max_size and read_size("--max-size", options.max_size)
    wanted = BuildOptions((options.height, options.width), smallest, largest, options.workspace, options.output)
    begin = time.monotonic()
    with progress_bar(f"building {path.name}, ‰") as bar:
        place = build_engine(path, wanted, bar.reach)
    header, spent = read_header(place), time.monotonic() - begin
    print(f"{place}: {_line(header)}, {header.plan_size / 1e6:.1f} MB, {spent:.1f} s")
    if options.json is not None:
        _write(options.json, {"engine": str(place), "seconds": spent, **asdict(header)})
    return 0


def _list(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("build_engine list",
                                     description="Show the engines in the cache, the newest first.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them as JSON, too")
    options = parser.parse_args(argv)
    from rich.table import Table

    found = entries()
    table = Table("file", "model", "precision", "size", "MB", "days", "built with", title=str(folder()))
    for path, header in found:
        status = path.stat()
        days, size = f"{(time.time() - status.st_mtime) / 86400:.1f}", f"{status.st_size / 1e6:.1f}"
        if header is None:
            table.add_row(path.name, "damaged", "", "", size, days, "")
            continue
        recipe = header.recipe
        table.add_row(path.name, header.model, f"{recipe.metadata.precision} {recipe.metadata.profile}",
                      str(recipe.sizes), size, days, str(recipe.target))
    table_console(_WIDE).print(table if found else f"no engines in {folder()}")
    if options.json is not None:
        make_folders(options.json.parent)
        _write(options.json, [{"engine": str(path), **(asdict(header) if header else {})} for path, header in found])
    return 0


def _clean(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("build_engine clean", description="Remove engines from the cache; they can be "
                                     "built again.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--older-than", type=float, default=_DAYS, metavar="DAYS",
                       help=f"those built longer ago (default {_DAYS:g})")
    which.add_argument("--all", action="store_true", help="all of them")
    options = parser.parse_args(argv)
    if options.older_than < 0:
        raise InputError(f"--older-than is {options.older_than:g} days, expected 0 or more")
    gone = clean(0 if options.all else options.older_than)
    print(f"{folder()}: {len(gone)} files removed" + (f", those older than {options.older_than:g} days"
                                                      if not options.all else ""))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "build_engine",
        description="Build a TensorRT engine of an ONNX file, for this GPU and this TensorRT, in the precision that "
                    "the file was exported in. It goes into a cache, where the runtime finds it; what is there is not "
                    "built again. Building takes from seconds to minutes.",
        epilog="build_engine list shows the cache; build_engine clean [--older-than DAYS | --all] empties it. Without "
               "a size, the engine runs images from 64×64 to 1920×1088 (width × height); one for a single size is "
               "faster.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL.onnx", help="a path, or the name of a model that ships")
    add("--height", type=int, default=0, metavar="H", help="height of the camera's images in pixels")
    add("--width", type=int, default=0, metavar="W", help="their width")
    add("--min-size", metavar="HEIGHTxWIDTH", help="smallest image, where the size varies, height first: 240x320")
    add("--max-size", metavar="HEIGHTxWIDTH", help="largest image, height first: 1080x1920; memory is reserved for it")
    add("--output", type=Path, metavar="FILE.engine", help="write this file instead of one in the cache")
    add("--workspace", type=int, default=0, metavar="MB",
        help="most scratch memory that a layer may take (default: all that is free)")
    add("--json", type=Path, metavar="FILE", help="write what was built as JSON")
    return parser


def _model(name: str) -> Path:
    if Path(name).suffix == ".onnx":
        return Path(name).expanduser()
    if Path(name).suffix or Path(name).name != name:
        raise InputError(f"model {name}: expected an .onnx file, or the name of a model that ships")
    return find_resource("models", f"{name}.onnx")


def _line(header: Header) -> str:
    recipe = header.recipe
    return f"{recipe.metadata.precision} {recipe.metadata.profile}, {recipe.sizes}, {recipe.target}"


def _write(path: Path, values: Any) -> None:
    with written_whole(path) as beside:
        beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
