"""Depth maps as files of every kind that the layouts have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.replay import scene_files


def read_pfm(path: Path) -> np.ndarray:
    """H×W float32 of a portable float map of one channel (``Pf``); its rows are stored from the bottom upward."""
    data = path.read_bytes()
    try:
        kind, size, scale, numbers = data.split(b"\n", 3)
        width, height = map(int, size.split())
        order = "<" if float(scale) < 0 else ">"
    except ValueError:
        raise InputError(f"{path} is no PFM: it begins with {data[:24]!r}") from None
    if kind.strip() != b"Pf" or len(numbers) != 4 * width * height:
        raise InputError(f"{path} is no whole PFM of one channel: it begins with {data[:24]!r} and has {len(numbers)} "
                         f"bytes of numbers, expected {4 * width * height}")
    return np.frombuffer(numbers, f"{order}f4").reshape(height, width)[::-1].astype(np.float32)


def read_hdf5(path: Path) -> np.ndarray:
    """H×W of the dataset ``depth``, as MegaDepth stores it."""
    import h5py

    try:
        with h5py.File(path) as file:
            numbers = np.asarray(file["depth"], np.float32)
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is no HDF5 file with a dataset 'depth': {error}") from None
    return scene_files.one_channel(numbers, path)


def _refuse_exr(path: Path) -> np.ndarray:
    raise InputError(f"{path}: depth as EXR is not read; convert it to float32 .npy")


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    **dict.fromkeys(scene_files.DEPTH_READERS, scene_files.read_depth),
    ".pfm": read_pfm, ".h5": read_hdf5, ".exr": _refuse_exr,
}


def read_depth(path: Path, factor: float, void: float | None = None) -> np.ndarray:
    """H×W float32, numbers of the file × `factor`; 0 where they are `void`, negative or not finite."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: expected a depth map of kind {' '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"no depth map {path}")
    numbers = reader(path)
    depth = np.nan_to_num(numbers.astype(np.float32) * np.float32(factor), nan=0.0, posinf=0.0, neginf=0.0)
    if void is not None:
        depth[numbers == void] = 0
    return np.maximum(depth, 0)
