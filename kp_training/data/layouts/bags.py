"""Bags with images, poses and perhaps depth: read once, and kept in the cache as a scene folder of ours."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.bag import BagOptions, BagSequence, RecordedFrame, data_files, of_one_recording
from kp_frontend.replay.topics import POSE_TYPES, SeveralTopics
from kp_frontend.resources import cache_folder
from kp_training.data.layouts.frames import to_pinhole
from kp_training.data.layouts.poses import poses_at
from kp_training.data.layouts.sequences import read_ours
from kp_training.data.posed import PosedScene
from kp_training.data.scene_writer import write_scene

FORMAT = 2  # of what is kept; a change of it makes all bags be read again
SUFFIXES = (".bag", ".mcap", ".db3")

log = logging.getLogger(__name__)


def read_bag(source: Path, name: str) -> PosedScene:
    """A bag with images, camera_info, the camera's poses (world_from_camera) and perhaps depth.

    Poses are interpolated at the images' stamps; frames that they do not cover are left out and counted.
    """
    folder = cache_folder("posed_bags") / _key(source)
    if not folder.is_dir():
        with _open(source) as sequence:
            scene = _as_scene(sequence, name)
            print(f"{source}: {len(scene)} frames are read from the bag into {folder}", flush=True)
            _keep(scene, folder)
    return read_ours(folder, name)


def bags_without_metadata(folder: Path) -> list[Path]:
    """Bags that lie in `folder` as files: each is one, save for .mcap or .db3 of one recording, which are `folder`."""
    files = data_files(folder)
    return sorted(path for path in folder.glob("*.bag") if path.is_file()) + (
        [folder] if of_one_recording(files) else files)


def _keep(scene: PosedScene, folder: Path) -> None:
    try:
        errors = write_scene(scene, folder)
    except InputError:
        if folder.is_dir():  # another process has read the same bag meanwhile
            return
        raise
    if errors:
        log.warning("%s: left out %d frames that cannot be read, the first: %s", scene.name, len(errors), errors[0])


def _key(source: Path) -> str:
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((FORMAT, stats)).encode()).hexdigest()[:16]


def _open(source: Path) -> BagSequence:
    """The bag with its one topic of poses, whatever that is called, and without a second image."""
    try:
        sequence = BagSequence(source)
    except SeveralTopics as error:
        raise InputError(f"{source}: {error.args[0]}; leave out all but one in a copy, `rosbags-convert --src {source} "
                         "--dst COPY --exclude-topic TOPIC …`") from None
    if sequence.camera is not None and (sequence.topics.ground_truth is None or sequence.mode == "stereo"):
        options = BagOptions(ground_truth=_pose_topic(sequence), mode="rgbd" if sequence.topics.depth else "mono")
        sequence.__exit__(None, None, None)
        sequence = BagSequence(source, options)
    return sequence


def _pose_topic(sequence: BagSequence) -> str:
    if sequence.topics.ground_truth is not None:
        return sequence.topics.ground_truth
    topics = sorted(topic for topic, kind in sequence.message_types.items() if kind in POSE_TYPES[:-1])
    if len(topics) != 1:
        raise InputError(f"{sequence.path} has {len(topics)} topics of poses ({', '.join(topics) or 'none'}), expected "
                         "one, or one named ground_truth; poses of the camera are needed, in a map frame")
    return topics[0]


def _as_scene(sequence: BagSequence, name: str) -> PosedScene:
    """The frames of an open bag that poses cover; to be read in their order, once."""
    if sequence.camera is None:
        said = "; ".join(warning.partition(": features are measured")[0] for warning in sequence.warnings)
        raise InputError(f"{sequence.path}: {said}; record camera_info with the images, or make a scene folder of them "
                         "with intrinsics.yaml")
    truth = sequence.ground_truth
    if truth is None or not truth.oriented:
        raise InputError(f"{sequence.path}: {sequence.topics.ground_truth} holds no poses with rotations")
    for warning in sequence.warnings:
        log.warning("%s", warning)
    poses = poses_at(truth, sequence.stamps)
    covered = [k for k, pose in enumerate(poses) if pose is not None]
    if not covered:
        spans = [f"{stamps[0] / 1e9:.3f} to {stamps[-1] / 1e9:.3f} s" for stamps in (sequence.stamps, truth.stamps)]
        raise InputError(f"{sequence.path}: poses on {sequence.topics.ground_truth} do not cover the images: images "
                         f"from {spans[0]}, poses from {spans[1]}; record both with one clock")
    if len(covered) < len(poses):
        log.warning("%s: left out %d of %d frames, which no pose covers", name, len(poses) - len(covered), len(poses))
    stamps = sequence.stamps[covered]
    matrices = np.tile(sequence.camera.matrix, (len(covered), 1, 1))
    return PosedScene(
        name, "", tuple(map(str, stamps)), np.stack([poses[k] for k in covered]), matrices,
        _Stream(sequence.frames(), sequence.camera, stamps.tolist()), sequence.topics.depth is not None, True, True,
    )


class _Stream:
    """Index → image and depth; indices must ascend, since a bag is read from its beginning.  stamps: nanoseconds."""

    def __init__(self, frames: Iterator[RecordedFrame], camera: CameraModel, stamps: list[int]) -> None:
        self.frames, self.camera, self.stamps = frames, camera, stamps

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        frame = next(frame for frame in self.frames if frame.stamp == self.stamps[index]).decode()
        depth = None if frame.depth is None else np.nan_to_num(frame.depth, nan=0.0, posinf=0.0, neginf=0.0)
        self._check_size("image", frame.image, "the calibration of this resolution")
        if depth is not None:
            self._check_size("depth", depth, "depth registered to the image")
        return to_pinhole(frame.image, depth, self.camera)

    def _check_size(self, what: str, pixels: np.ndarray, needed: str) -> None:
        height, width = pixels.shape[:2]
        if (width, height) != (self.camera.width, self.camera.height):
            raise InputError(f"{what} is {width}×{height} but camera_info says {self.camera.width}×"
                             f"{self.camera.height}; record {needed}")
