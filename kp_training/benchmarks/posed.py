"""What posed data cost on this machine: rendering, overlap, loading of pairs, and labelling of frames."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from kp_frontend.progress import Progress
from kp_training.benchmarks.memory import forget_peak, resident
from kp_training.data import open_scenes
from kp_training.data.overlap import depth_overlap
from kp_training.data.posed import PosedScene
from kp_training.data.posed_pairs import PosedPairConfig, PosedPairs
from kp_training.labels.expectation import Expectation
from kp_training.labels.projective import ProjectiveConfig, adapt_frames, draw_others
from kp_training.labels.scenes import ExpectationConfig, voxel_grid
from kp_training.methods import find_method
from kp_training.training import Machine

CPU = torch.device("cpu")
RENDERED = 1
"""Scenes that the speed of rendering is measured on."""
OVERLAPPING = 1000
VOXEL_FRAMES = 150
PAIRS = 40


@dataclass(frozen=True)
class PosedFigures:
    """What one kind of work costs.

    count: of frames or pairs (`unit`), done in `seconds`, of which `cpu` were worked by all cores together, with a
    peak of `memory` MB above what the process had.
    """

    work: str
    unit: str
    count: int
    seconds: float
    cpu: float
    memory: float

    @property
    def rate(self) -> float:
        """Frames or pairs a second."""
        return self.count / self.seconds


@dataclass(frozen=True)
class Work:
    """measure: (`data`, device, progress) → figures.  goal: what they are to reach, and whether they do."""

    measure: Callable[[str, str, Progress], PosedFigures]
    goal: tuple[str, Callable[[PosedFigures], bool]] | None = None


class _Watch:
    """Time and peak of memory from here on."""

    def __init__(self) -> None:
        self.before = resident("VmRSS")
        forget_peak(CPU)
        self.begin, self.worked = time.perf_counter(), _worked()

    def figures(self, work: str, unit: str, count: int) -> PosedFigures:
        """What `count` things took since then."""
        seconds, cpu = time.perf_counter() - self.begin, _worked() - self.worked
        return PosedFigures(work, unit, count, seconds, cpu, resident("VmHWM") - self.before)


def _worked() -> float:
    """Seconds of all threads, and of processes that have ended."""
    times = os.times()
    return sum(times[:4])


def render_on_one(data: str, device: str, progress: Progress) -> PosedFigures:
    """Frames of procedural scenes, rendered ahead on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return _render("one core", progress)


def render_on_all(data: str, device: str, progress: Progress) -> PosedFigures:
    """Frames of procedural scenes, rendered ahead on all cores."""
    return _render(f"{len(os.sched_getaffinity(0))} cores", progress)


def _render(cores: str, progress: Progress) -> PosedFigures:
    """Into a cache of its own, or they would be there already."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KP_FRONTEND_CACHE"] = folder
        watch = _Watch()
        scenes = open_scenes([f"rooms:{RENDERED}"], 240, 320)
        return watch.figures(f"rooms of 320×240, {cores}", "frames", sum(len(scene) for scene in scenes))


def find_overlap(data: str, device: str, progress: Progress) -> PosedFigures:
    """All pairs of OVERLAPPING frames, the scene's own over and over, each read as often."""
    scene = _repeated(_scene(data), OVERLAPPING)
    watch = _Watch()
    depth_overlap(scene, np.arange(len(scene)))
    return watch.figures(f"overlap of all pairs of {len(scene)} frames", "frames", len(scene))


def load_pairs(data: str, device: str, progress: Progress) -> PosedFigures:
    """Pairs of 640×480 as training reads them, in one process."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    config = PosedPairConfig(choice="offset", least_offset=5, most_offset=10, height=480, width=640)
    pairs = PosedPairs([_scene(data)], config, seed=0)
    pairs[0]
    watch = _Watch()
    for number in range(PAIRS):
        pairs[number]
        progress(number + 1, PAIRS)
    return watch.figures("pairs of 640×480, one process", "pairs", PAIRS)


def adapt_projectively(data: str, device: str, progress: Progress) -> PosedFigures:
    """Labels for a group of frames by an untrained SuperPoint, at 320×240."""
    config, scene = ProjectiveConfig(height=240, width=320), _scene(data)
    stage = find_method("superpoint")(find_method("superpoint").Config()).stages()[0]
    detector = stage.deployed(stage.network()).eval()
    where = Machine.here(device).device()
    frames = [scene[number] for number in range(min(config.group, len(scene)))]
    drawn = draw_others(len(frames), config.others, np.random.default_rng(0))
    adapt_frames(detector.to(where), frames[:2], drawn[:2, :1] % 2, config, where)
    watch = _Watch()
    adapt_frames(detector, frames, drawn, config, where)
    return watch.figures(f"projective adaptation at 320×240, {where}", "frames", len(frames))


def map_voxels(data: str, device: str, progress: Progress) -> PosedFigures:
    """SEDM's expectation over frames of 640×480 without the network: all are counted in, then read back."""
    scene, config, rng = _repeated(_scene(data), VOXEL_FRAMES), ExpectationConfig(voxel=0.005), np.random.default_rng(0)
    watch = _Watch()
    expectation = Expectation(voxel_grid(scene, config), config.least_angle)
    for number in range(len(scene)):
        frame = scene[number]
        expectation.add(frame, rng.random(frame.depth.shape, np.float32))
        progress(number + 1, 2 * len(scene))
    for number in range(len(scene)):
        expectation.repeatability(scene[number])
        progress(len(scene) + number + 1, 2 * len(scene))
    size = "×".join(map(str, frame.depth.shape[::-1]))
    return watch.figures(f"voxel map of 5 mm, {len(scene)} frames of {size}", "frames", len(scene))


WORKS = {
    "rooms, one core": Work(render_on_one),
    "rooms": Work(render_on_all, ("at least 20 rendered frames of 320×240 a second", lambda found: found.rate >= 20)),
    "overlap": Work(find_overlap, (f"overlap of {OVERLAPPING} frames in under a minute",
                                   lambda found: found.seconds < 60)),
    "pairs": Work(load_pairs, ("a pair of 640×480 in at most 40 ms on one core", lambda found: found.rate >= 25)),
    "projective": Work(adapt_projectively),
    "voxels": Work(map_voxels, (f"a voxel map of {VOXEL_FRAMES} frames within two minutes and 4 GB",
                                lambda found: found.seconds <= 120 and found.memory <= 4096)),
}


def prepare(data: str, progress: Progress) -> str:
    """Name of the scene that all work is measured on, rendered where it is not yet."""
    return _scene(data).name


def _scene(data: str) -> PosedScene:
    return open_scenes([data], 480, 640)[0]


def _repeated(scene: PosedScene, count: int) -> PosedScene:
    """`count` frames: the scene's first, or its own again and again."""
    return scene.choose(np.arange(count) % len(scene), f"*{count}")
