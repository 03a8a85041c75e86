"""``prepare``: posed recordings of any layout, bags and built-in rooms as scene folders of ours."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.progress import progress_bar
from kp_training.cli.image_size import say_upright

if TYPE_CHECKING:
    from kp_training.data.posed import PosedScene

log = logging.getLogger(__name__)

RECORD = "prepare.json"
ROOM_SIZE = (320, 240)
EXAMPLES = """examples:
  python -m kp_training prepare rgbd_dataset_freiburg1_desk --output data/desk       TUM RGB-D
  python -m kp_training prepare scans --layout scannet --every 10 --output data/scannet
  python -m kp_training prepare recording.mcap --output data/lab                     image, depth and pose topics
  python -m kp_training prepare blended/5a3ca9cb270f0e3f14d0eddb --size 640x480 --output data/block
  python -m kp_training prepare rooms:4 --size 640x480 --output data/rooms           built-in scenes, nothing to fetch
  python -m kp_training check_scene data/desk                                        do poses and depth agree?
  python -m kp_training train --method superpoint_prp --data posed:data/desk

Written is rgb/NNNNNN.png without lens distortion (files that need no change are copied), depth/NNNNNN.png (millimetres
along z) or .npy (float32, in the scene's own unit where it has no metric scale: `unit: scene` in intrinsics.yaml),
poses.txt and intrinsics.yaml; where images have calibrations of their own, intrinsics.txt has a row fx fy cx cy each.
A folder of several scenes becomes a folder of several; a run that was stopped goes on with the scene where it was.
Archives are to be unpacked first."""


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_args(argv)
    if options.every < 1:
        raise InputError(f"--every is {options.every}, expected at least 1")
    size = _size(options.size) if options.size else None
    if options.output.exists() and not (options.output / RECORD).is_file():
        raise InputError(f"{options.output} is there already; give another folder, or remove it")
    scenes = _scenes(options, size)
    folders = _folders(options, scenes)
    count = sum(len(range(0, len(scene), options.every)) for scene, _ in folders)
    from kp_training.data.scene_writer import write_scene

    with progress_bar("frames", count) as bar:
        for scene, folder in folders:
            errors = write_scene(scene, folder, options.every, size, bar.advance)
            if errors:
                log.warning("%s: left out %d frames that cannot be read, the first: %s", folder, len(errors), errors[0])
    for scene, folder in folders:
        print(_line(scene, folder))
    done = len(scenes) - len(folders)
    print(f"{options.output}: {len(folders)} scenes written{f', {done} were there already' if done else ''}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "prepare", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description="Turn posed images of any layout that we know into our scene folders.")
    parser.add_argument("source", help="a scene folder, a folder of such, a bag, a transforms.json, or rooms[:COUNT]")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new folder")
    parser.add_argument("--layout", help="of the source (default: by its files); a wrong one lists the valid ones")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th frame only")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT",
                        help="resize frames, width first, as in 640x480 (default: to the size of each scene's first)")
    return parser


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if match is None or min(map(int, match.groups())) < 16:
        raise InputError(f"--size {text}: expected WIDTHxHEIGHT of at least 16 pixels each, as in 640x480")
    width, height = int(match[1]), int(match[2])
    say_upright("--size", text, height, width)
    return width, height


def _scenes(options: argparse.Namespace, size: tuple[int, int] | None) -> list[PosedScene]:
    if options.source.partition(":")[0] == "rooms" and not Path(options.source).exists():
        from kp_training.data import open_scenes

        width, height = size or ROOM_SIZE
        return list(open_scenes([options.source], height, width))
    from kp_training.data.layouts import open_posed

    return open_posed(options.source, options.layout)


def _folders(options: argparse.Namespace, scenes: Sequence[PosedScene]) -> list[tuple[PosedScene, Path]]:
    """Scenes that are still to be written, and where; a folder of several remembers what it is made of."""
    output: Path = options.output
    if len(scenes) == 1 and not output.exists():
        return [(scenes[0], output)]
    record = {"source": str(options.source), "every": options.every, "size": options.size,
              "scenes": {scene.name: scene.identity for scene in scenes}}
    if output.exists() and _read(output / RECORD) != record:
        raise InputError(f"{output} holds something else, prepared from another source, or with other options; give "
                         "another folder, or remove it")
    output.mkdir(parents=True, exist_ok=True)
    with written_whole(output / RECORD) as beside:
        beside.write_text(json.dumps(record, indent=1) + "\n")
    last = [Path(scene.name).name for scene in scenes]
    names = last if len(set(last)) == len(last) else [scene.name for scene in scenes]
    folders = [(scene, output / name) for scene, name in zip(scenes, names)]
    for _, folder in folders:
        for left in folder.parent.glob(f".{folder.name}.partial*"):
            shutil.rmtree(left, ignore_errors=True)
    return [(scene, folder) for scene, folder in folders if not folder.exists()]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _line(scene: PosedScene, folder: Path) -> str:
    """What was written, in one line."""
    frames = len(list((folder / "rgb").iterdir()))
    kinds = {path.suffix for path in (folder / "depth").iterdir()} if (folder / "depth").is_dir() else set()
    depth = "depth in millimetres" if kinds == {".png"} else "depth as floats" if kinds else "no depth"
    own = ", intrinsics of each image" if (folder / "intrinsics.txt").is_file() else ""
    return f"{folder}: {frames} frames, {depth}, {'metric' if scene.metric else 'scale unknown'}{own}"
