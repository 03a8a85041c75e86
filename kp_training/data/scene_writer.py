"""Posed scenes as scene folders of our layout (DESIGN.md section 6)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.trajectory import Trajectory, write_tum
from kp_training.data.posed import PosedFrame, PosedScene

DEEPEST = 65.535  # metres, what 16 bits of millimetres hold
PERIOD = 1_000_000_000 // 30  # nanoseconds between frames that have no stamps


def write_scene(
    scene: PosedScene, folder: Path, every: int = 1, size: tuple[int, int] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[InputError]:
    """Write each `every`-th frame of `scene` to the new folder `folder`, which is there only when it is complete.

    size: width and height that frames are resized to; None: those of the first.  progress: called after each frame.
    Image files that need no change are copied.  A reader of `scene` may name them, and the frames' stamps
    (``FrameReader.original`` and ``stamps``).  Where frames have different intrinsics, ``intrinsics.txt`` has a row
    fx fy cx cy for each image.  Depth is PNG in millimetres where metres are known and 16 bits hold them, else
    float32 .npy in the scene's unit.
    Returns the errors of frames that could not be read and were left out; raises InputError where all were.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already; give another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "rgb").mkdir(parents=True)
        written, errors = _write_frames(scene, partial, range(0, len(scene), every), size, progress)
        if not written:
            raise InputError(f"{scene.name}: not one of {len(errors)} frames can be read: {errors[0]}")
        _write_numbers(scene, partial, written)
        partial.replace(folder)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or folder} ({error.strerror}); make room or give another "
                         "folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return errors


def _write_frames(
    scene: PosedScene, folder: Path, chosen: Sequence[int], size: tuple[int, int] | None, progress: Callable[[], None],
) -> tuple[list[tuple[int, CameraModel]], list[InputError]]:
    """Number and camera of each frame that was written, and the errors of those that could not be read."""
    written: list[tuple[int, CameraModel]] = []
    errors: list[InputError] = []
    millimetres = scene.metric
    for number in chosen:
        try:
            frame = scene[number]
        except InputError as error:
            errors.append(error)
        else:
            size = size or frame.image.shape[1::-1]
            image, depth, camera = resized(frame, size)
            name = f"{len(written):06d}"
            original = getattr(scene.read, "original", lambda number: None)(number)
            if original is not None and image is frame.image:
                shutil.copyfile(original, folder / "rgb" / f"{name}{original.suffix.lower()}")
            else:
                _save_picture(folder / "rgb" / f"{name}.png", image)
            if depth is not None:
                if millimetres and depth.max() > DEEPEST:
                    _to_floats(folder / "depth")
                    millimetres = False
                _write_depth(folder / "depth", name, depth, millimetres)
            written.append((number, camera))
        progress()
    return written, errors


def resized(frame: PosedFrame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None, CameraModel]:
    """Image, depth and camera of `frame`, stretched to width × height; depth is never averaged."""
    height, width = frame.image.shape[:2]
    camera = CameraModel(width, height, frame.intrinsics).scaled(*size)
    if (width, height) == tuple(size):
        return frame.image, frame.depth, camera
    shrinks = size[0] * size[1] < width * height
    image = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if frame.depth is None:
        return image, None, camera
    # INTER_NEAREST of OpenCV takes the pixel to the upper left; this one the nearest centre.
    return image, cv2.resize(frame.depth, size, interpolation=cv2.INTER_NEAREST_EXACT), camera


def _write_depth(folder: Path, name: str, depth: np.ndarray, millimetres: bool) -> None:
    folder.mkdir(exist_ok=True)
    if millimetres:
        _save_picture(folder / f"{name}.png", np.rint(depth * 1000).astype(np.uint16))
    else:
        np.save(folder / f"{name}.npy", depth.astype(np.float32))


def _save_picture(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), picture):
        raise OSError(0, "the picture could not be written", str(path))  # OpenCV does not say why


def _to_floats(folder: Path) -> None:
    """Depth that was written in millimetres as metres: a folder has one kind of file."""
    for path in folder.glob("*.png"):
        np.save(path.with_suffix(".npy"), cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000)
        path.unlink()


def _write_numbers(scene: PosedScene, folder: Path, written: Sequence[tuple[int, CameraModel]]) -> None:
    """Poses, stamps and intrinsics of the frames that were written."""
    numbers = [number for number, _ in written]
    recorded = getattr(scene.read, "stamps", None)
    stamps = np.array([recorded[number] if recorded else number * PERIOD for number in numbers], np.int64)
    if (np.diff(stamps) <= 0).any():
        stamps = np.array(numbers, np.int64) * PERIOD
    write_tum(folder / "poses.txt", Trajectory(stamps, np.asarray(scene.poses[numbers], np.float64)))
    focals = np.array([camera.matrix[[0, 1, 0, 1], [0, 1, 2, 2]] for _, camera in written])
    camera = written[0][1]
    values = dict(zip(("fx", "fy", "cx", "cy"), focals[0].tolist()))
    values |= {"width": camera.width, "height": camera.height, "depth_type": "z"}
    values |= {} if scene.metric else {"unit": "scene"}
    values |= {} if scene.ordered else {"ordered": False}
    (folder / "intrinsics.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    if not np.allclose(focals, focals[0], rtol=1e-9, atol=1e-6):
        rows = "".join(f"{' '.join(f'{value:.6f}' for value in row)}\n" for row in focals)
        (folder / "intrinsics.txt").write_text(f"# fx fy cx cy of each image\n{rows}")
