"""Labels of the frames of posed scenes by soft expectation (SEDM): what a detector finds again from other places."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.errors import InputError
from kp_training.data.posed import PosedFrame, PosedScene, SceneFrames, evenly, need_depth
from kp_training.geometry.homography import scale_homography
from kp_training.labels.edges import CELL, choose_points
from kp_training.labels.expectation import Expectation, VoxelGrid
from kp_training.labels.points import AdaptedLabels, Detect, LabelConfig, half_precision
from kp_training.labels.store import Shard, kept_labels, labels_key

PURPOSE = "by which a frame's points are found in others"
AT_ONCE = 4
PAPER_PIXELS = 480 * 640
METRIC_VOXEL = 0.005
DEPTHS = 8
"""Frames of a scene whose depths tell how far away it is."""
FEW_OF_SCENE = 32
"""Frames of a scene that see most of it from several sides."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpectationConfig(LabelConfig):
    """Settings of soft expectation; those of LabelConfig have the paper's values.

    points, nms_radius: at most so many, so far apart, of a frame of 480×640; of a smaller one as many fewer, as much
    closer, or the distance alone would choose them.
    threshold: least repeatability of a point, well below the share of pixels that are points (2000 are .0065).
    fewest: where frames have fewer points on average, the good points have vanished.
    voxel: side in the scene's unit of length.  0: the paper's 5 mm in metric scenes and `voxel_share` of the median
    depth in others, but no less than two pixels cover at the median depth, or frames miss each other's voxels [ours].
    least_angle: see Expectation.  edge_filter, smoothing: see choose_points.
    """

    height: int = 480
    width: int = 640
    threshold: float = 0.001
    nms_radius: int = 6
    fewest: int = 20
    points: int = 2000
    voxel: float = 0.0
    voxel_share: float = 0.002
    least_angle: float = 2.0
    edge_filter: bool = True
    smoothing: float = 1.0

    def choose(self, values: np.ndarray, known: np.ndarray, height: int, width: int) -> np.ndarray:
        """N×3 rows of a frame of height×width in its pixels, as `SceneLabels` holds them, from its H×W maps."""
        share = values.size / PAPER_PIXELS
        points = choose_points(
            values, known, round(self.points * share), threshold=self.threshold,
            nms_radius=max(1, round(self.nms_radius * share**0.5)), border=self.border, edge_filter=self.edge_filter,
            smoothing=self.smoothing,
        )
        scale = np.array([width, height]) / values.shape[::-1]
        points[:, :2] = (points[:, :2] + 0.5) * scale - 0.5
        shares = cv2.resize(known.astype(np.float32), None, fx=1 / CELL, fy=1 / CELL, interpolation=cv2.INTER_AREA)
        y, x = np.nonzero(shares < 0.5)
        centres = (np.stack([x, y], 1) + 0.5) * CELL * scale - 0.5
        return np.vstack([points, np.column_stack([centres, np.zeros(len(centres))])]).astype(np.float32)


@dataclass(frozen=True)
class SceneLabels:
    """Labels of frames by their running index, and where there is nothing to say.

    rows: of each frame, N×3 (x, y, repeatability) in its pixels: points, and with repeatability 0 the centres of the
    8×8 cells, of the frame as it was labelled, that no two directions saw.  config: what they were made with.
    """

    rows: AdaptedLabels
    config: ExpectationConfig

    def __call__(self, index: int) -> np.ndarray:
        """N×3 float32 points of a frame."""
        rows = self.rows(index)
        return rows[rows[:, 2] > 0]

    def known_cells(self, index: int, height: int, width: int) -> np.ndarray:
        """h×w bool over a whole frame of height×width: where its points, and that there is none, are to be believed."""
        shape = np.array(self.config.size_of(height, width)) // CELL
        known = np.ones(shape, bool)
        rows = self.rows(index)
        centres = rows[rows[:, 2] == 0, 1::-1]
        y, x = np.floor((centres + 0.5) * shape / [height, width]).astype(int).T
        known[y, x] = False
        return known

    @property
    def mean(self) -> float:
        """Points of a frame."""
        return float((self.rows.points[:, 2] > 0).sum()) / max(len(self.rows.indices), 1)


def label_scenes(
    detector: nn.Module, scenes: Sequence[PosedScene], config: ExpectationConfig, cache: Path, device: torch.device
) -> SceneLabels:
    """Labels of all frames of `scenes`, by running index, from `cache` or made with `detector` and kept there by scene.

    detector: a Detect in evaluation mode on `device`.  Frames that cannot be read have none.
    Raises InputError where a scene has no depth or the disk is full.
    """
    need_depth(scenes, PURPOSE)
    frames = SceneFrames(scenes)
    starts = [frames.start(number) for number in range(len(scenes))]
    folders = [cache / labels_key(detector, scene.identity, config, 0) for scene in scenes]
    shards = [Shard(folder / f"{len(scene):06d}.npz", start + np.arange(len(scene)))
              for folder, scene, start in zip(folders, scenes, starts) if len(scene)]

    def label(indices: np.ndarray) -> Iterator[np.ndarray]:
        scene, _ = frames.locate(int(indices[0]))
        return label_scene(detector, scenes[scene], config, device)

    return SceneLabels(kept_labels(shards, label, config, "frames"), config)


def label_scene(
    detect: Detect, scene: PosedScene, config: ExpectationConfig, device: torch.device | str = "cpu"
) -> Iterator[np.ndarray]:
    """Rows of each frame of a scene, as in `SceneLabels`: all frames are seen before the first is labelled."""
    expectation = Expectation(voxel_grid(scene, config), config.least_angle)
    for batch in _read_ahead(scene, config):
        usable = [view.frame for view in batch if view is not None]
        for frame, scores in zip(usable, _scores(detect, usable, device)):
            expectation.add(frame, scores)
    unusable = 0
    for view in itertools.chain.from_iterable(_read_ahead(scene, config)):
        unusable += view is None
        yield np.zeros((0, 3), np.float32) if view is None else config.choose(
            *expectation.repeatability(view.frame), *view.size)
    if unusable:
        log.warning("%s: %d of %d frames could not be read and are left out", scene.name, unusable, len(scene))


def voxel_grid(scene: PosedScene, config: ExpectationConfig) -> VoxelGrid:
    """Voxels about the middle of where the frames were taken; see ExpectationConfig."""
    origin = scene.poses[:, :3, 3].mean(0)
    if config.voxel:
        return VoxelGrid(origin, config.voxel)
    some = evenly(len(scene), DEPTHS)
    views = [view.frame for view in (_read(scene, int(number), config) for number in some) if view is not None]
    depths = [frame.depth[np.isfinite(frame.depth) & (frame.depth > 0)] for frame in views]
    if not sum(map(len, depths)):
        raise InputError(f"scene {scene.name}: {len(views)} of {len(some)} frames that were looked at can be read, and "
                         "their depth is unknown everywhere; look at it with kp_training check_scene")
    median = float(np.median(np.concatenate(depths)))
    pixel = median / np.mean([frame.intrinsics[0, 0] for frame in views])
    return VoxelGrid(origin, max(METRIC_VOXEL if scene.metric else config.voxel_share * median, 2 * pixel))


def some_frames(scenes: Sequence[PosedScene], count: int, seed: int) -> list[PosedScene]:
    """At most `count` frames: evenly spread ones, as many of each scene, of as many scenes as leave each FEW_OF_SCENE.

    The order in which scenes are taken is drawn by `seed`; short ones leave their share to the others.
    """
    taken: list[PosedScene] = []
    for number in np.random.default_rng([seed, 6]).permutation(len(scenes)):
        if sum(min(len(scene), FEW_OF_SCENE) for scene in taken) < count:
            taken.append(scenes[number])
    chosen = []
    for left, scene in zip(range(len(taken), 0, -1), sorted(taken, key=len)):
        share = count // left
        chosen.append(scene if share >= len(scene) else scene.choose(evenly(len(scene), share), f"[{share}]"))
        count -= len(chosen[-1])
    return chosen


def read_greys(
    scenes: Sequence[PosedScene], count: int, config: ExpectationConfig, device: torch.device | str
) -> Tensor:
    """B×1×H×W in [0, 1]: frames of `scenes` of one size, evenly spread, at most `count`."""
    frames = SceneFrames(scenes)
    spread = evenly(len(frames), count)
    places = [frames.locate(int(index)) for index in spread]
    views = [_read(frames.scenes[scene], frame, config) for scene, frame in places]
    greys = [cv2.cvtColor(view.frame.image, cv2.COLOR_BGR2GRAY) for view in views if view is not None]
    if not greys:
        raise InputError(f"none of {len(spread)} frames that were looked at can be read; see kp_training check_scene")
    same = [grey for grey in greys if grey.shape == greys[0].shape]
    return torch.from_numpy(np.stack(same))[:, None].to(device).float() / 255


class _View(NamedTuple):
    """A frame as small as it is labelled, and the height and width it had."""

    frame: PosedFrame
    size: tuple[int, int]


def _read(scene: PosedScene, index: int, config: ExpectationConfig) -> _View | None:
    """None where the frame cannot be read, or has no depth."""
    try:
        frame = scene[index]
    except InputError:
        return None
    if frame.depth is None:
        return None
    size = frame.image.shape[:2]
    height, width = config.size_of(*size)
    shrunk = scale_homography(frame.intrinsics, np.ones(2), np.array([width / size[1], height / size[0]]))
    image = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA)
    depth = cv2.resize(frame.depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return _View(PosedFrame(image, depth, shrunk, frame.world_from_camera), size)


def _read_ahead(scene: PosedScene, config: ExpectationConfig) -> Iterator[list[_View | None]]:
    """All frames in order, some at once; the next ones are read while these are used."""
    batches = [range(start, min(start + AT_ONCE, len(scene))) for start in range(0, len(scene), AT_ONCE)]
    with ThreadPoolExecutor(1) as reader:
        jobs = [reader.submit(_read_batch, scene, batches[0], config)]
        for following in batches[1:]:
            jobs.append(reader.submit(_read_batch, scene, following, config))
            yield jobs.pop(0).result()
        yield jobs.pop().result()


def _read_batch(scene: PosedScene, indices: range, config: ExpectationConfig) -> list[_View | None]:
    return [_read(scene, index, config) for index in indices]


@torch.no_grad()
def _scores(detect: Detect, frames: Sequence[PosedFrame], device: torch.device | str) -> Iterator[np.ndarray]:
    """H×W float32 of each frame; those of one size go through the detector together."""
    greys = [cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY) for frame in frames]
    for _, same in itertools.groupby(greys, key=np.shape):
        views = torch.from_numpy(np.stack(list(same)))[:, None].to(device).float() / 255
        with half_precision(views.device):
            scores = detect(views.contiguous(memory_format=torch.channels_last))[0]
        yield from scores[:, 0].float().cpu().numpy()
