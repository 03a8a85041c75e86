"""Poses over time, and the text files that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.quaternions import poses_from_quaternions, quaternions_from_poses


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Where one camera was, and when.

    stamps: N int64, nanoseconds, strictly ascending.
    poses: N×4×4 float64, world_from_camera in metres, camera x right, y down, z forward.
    oriented: False where the source knows positions only (the rotations are then the identity).
    """

    stamps: np.ndarray
    poses: np.ndarray
    oriented: bool = True

    def __post_init__(self) -> None:
        count = len(self.stamps)
        if self.stamps.shape != (count,) or self.stamps.dtype != np.int64:
            raise ValueError(f"stamps: expected N int64, got {self.stamps.shape} {self.stamps.dtype}")
        if self.poses.shape != (count, 4, 4) or self.poses.dtype != np.float64:
            raise ValueError(f"poses: expected {count}×4×4 float64, got {self.poses.shape} {self.poses.dtype}")
        if (np.diff(self.stamps) <= 0).any():
            raise ValueError("stamps: expected strictly ascending nanoseconds")

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def positions(self) -> np.ndarray:
        """N×3 float64, metres."""
        return self.poses[:, :3, 3]

    @property
    def length(self) -> float:
        """Length of the path in metres."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())

    def select(self, which: np.ndarray) -> Trajectory:
        """Poses at `which` (ascending indices or a boolean mask)."""
        return Trajectory(self.stamps[which], self.poses[which], self.oriented)

    def moved_by(self, source_from_camera: np.ndarray) -> Trajectory:
        """Poses of a camera that is fixed at `source_from_camera` (4×4) to what this trajectory describes."""
        return Trajectory(self.stamps, self.poses @ source_from_camera, self.oriented)

    @classmethod
    def from_samples(cls, stamps: np.ndarray, poses: np.ndarray, oriented: bool = True) -> Trajectory:
        """Trajectory of samples in any order; of several with one stamp the first counts."""
        stamps, first = np.unique(np.asarray(stamps, np.int64), return_index=True)
        return cls(stamps, np.asarray(poses, np.float64).reshape(-1, 4, 4)[first], oriented)


def read_rows(path: Path, columns: int, delimiter: str | None = None) -> np.ndarray:
    """Numbers of a text file with at least `columns` a row, as R×`columns` strings; ``#`` starts a comment.

    Strings, since a float64 cannot hold a stamp of 2020 in nanoseconds. Raises InputError with the line.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        fields = [entry.strip() for entry in line.split(delimiter)] if line else []
        if not fields:
            continue
        if len(fields) < columns:
            raise InputError(f"{path}, line {number}: expected {columns} numbers, got {line[:60]!r}")
        rows.append(fields[:columns])
    if not rows:
        raise InputError(f"{path} holds no rows")
    return np.array(rows)


def as_floats(rows: np.ndarray, path: Path) -> np.ndarray:
    """`rows` as float64; InputError where one is no number."""
    try:
        return rows.astype(np.float64)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def as_nanoseconds(seconds: np.ndarray, path: Path) -> np.ndarray:
    """Exact int64 nanoseconds of decimal seconds given as strings; InputError where one is no time."""
    return np.array([_nanoseconds(text, path) for text in seconds.tolist()], np.int64)


def _nanoseconds(seconds: str, path: Path) -> np.int64:
    try:
        return np.int64(round(Decimal(seconds) * 10**9))
    except (ValueError, ArithmeticError):  # no number, nan; infinity, more than 64 bits
        raise InputError(f"{path}: {seconds!r} is no time; the first column must be a stamp in seconds") from None


def as_integers(nanoseconds: np.ndarray, path: Path) -> np.ndarray:
    """Stamps given as strings of whole nanoseconds as int64; InputError where one is none."""
    try:
        return nanoseconds.astype(np.int64)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: {error}; the first column must be a stamp in nanoseconds, "
                         "and a header must begin with #") from None


def poses_from_rows(rows: np.ndarray) -> np.ndarray:
    """N×4×4 poses of N×7 tx ty tz qx qy qz qw; a row that is not finite has the position nan."""
    finite = np.isfinite(rows).all(axis=1, keepdims=True)
    whole = np.where(finite, rows, (np.nan, np.nan, np.nan, 0, 0, 0, 1))
    return poses_from_quaternions(whole[:, :3], whole[:, 3:])


def read_tum(path: Path) -> Trajectory:
    """Rows ``stamp tx ty tz qx qy qz qw``: seconds, metres, world_from_camera."""
    rows = read_rows(path, 8)
    return Trajectory.from_samples(as_nanoseconds(rows[:, 0], path), poses_from_rows(as_floats(rows[:, 1:], path)))


def read_kitti(path: Path, stamps: np.ndarray) -> Trajectory:
    """Rows of 12 numbers, the upper 3×4 of world_from_camera; row k belongs to ``stamps[k]``."""
    values = as_floats(read_rows(path, 12), path)
    if len(values) != len(stamps):
        raise InputError(f"{path} has {len(values)} poses for {len(stamps)} frames; KITTI rows need one a frame")
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3] = values.reshape(-1, 3, 4)
    return Trajectory.from_samples(stamps, poses)


def read_euroc(path: Path) -> Trajectory:
    """EuRoC's csv: stamp in nanoseconds, position, quaternion w x y z of the body; further columns are ignored."""
    rows = read_rows(path, 8, ",")
    values = as_floats(rows[:, 1:], path)[:, [0, 1, 2, 4, 5, 6, 3]]
    return Trajectory.from_samples(as_integers(rows[:, 0], path), poses_from_rows(values))


def read_trajectory(path: Path, stamps: np.ndarray) -> Trajectory:
    """Trajectory of a TUM, KITTI or EuRoC file, told apart by its first row.

    stamps: of the frames, for KITTI's rows, which have none.
    """
    if not path.is_file():
        raise InputError(f"no ground truth file {path}")
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(errors="replace").splitlines())
    first = next((line for line in lines if line), "")
    if first.count(",") >= 7:
        return read_euroc(path)
    columns = len(first.split())
    if columns == 12:
        return read_kitti(path, stamps)
    if columns == 8:
        return read_tum(path)
    raise InputError(
        f"{path}: the first row has {columns} columns; expected 8 (TUM: stamp tx ty tz qx qy qz qw), "
        "12 (KITTI) or a comma-separated EuRoC row"
    )


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Write rows ``stamp tx ty tz qx qy qz qw``; evo and TUM's tools read them."""
    values = np.hstack([trajectory.positions, quaternions_from_poses(trajectory.poses)])
    lines = [
        f"{stamp // 10**9}.{stamp % 10**9:09d} " + " ".join(f"{value:.7f}" for value in row)
        for stamp, row in zip(trajectory.stamps.tolist(), values)
    ]
    path.write_text("\n".join(["# stamp tx ty tz qx qy qz qw", *lines, ""]))
