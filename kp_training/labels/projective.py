"""Projective adaptation: what a detector finds in frames of a scene, mapped into each other, becomes their labels.

SuperPoint-PrP of "NeRF-supervised feature point detection and description" (METHODS.md section 3): consecutive frames
form groups, and each frame is labelled by its own scores and those of others of its group, by depth and pose.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_frontend.decoding import find_peaks
from kp_frontend.errors import InputError, unknown_name
from kp_training.data.posed import PosedFrame, PosedScene, SceneFrames, need_depth
from kp_training.geometry.homography import scale_homography
from kp_training.geometry.sampling import inside, sample
from kp_training.geometry.warps import PosedView, Reprojection, nearest_surface
from kp_training.labels.points import AdaptedLabels, Detect, LabelConfig, half_precision
from kp_training.labels.store import Shard, kept_labels, labels_key

PURPOSE = "by which labels are mapped between frames"
PIXELS_AT_ONCE = 20 * 240 * 320
SPAN = 8
"""Groups in the part of a scene that is labelled where not all are: 160 frames, enough for the paper's pairs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProjectiveConfig(LabelConfig):
    """Settings of projective adaptation; the others are LabelConfig's.

    group: consecutive frames that label each other.  others: so many of them, drawn, are mapped into each.
    average: a name in AVERAGES.
    window, jump, occlusion: see Reprojection; the averages of the public code go without `occlusion`.
    nms_radius: 3 is what the public code's boxes of 4 pixels do that overlap by no more than a tenth.
    """

    height: int = 480
    width: int = 640
    nms_radius: int = 3
    border: int = 3
    group: int = 20
    others: int = 14
    average: str = "normalised"
    window: int = 5
    jump: float = 0.03
    occlusion: float = 0.05

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise unknown_name("average of projective adaptation", self.average, AVERAGES)


@dataclass(frozen=True, eq=False)
class Group:
    """G frames at the size that they are labelled at, on the device.

    images: G×1×H×W float32 in [0, 1].  surfaces: G×H×W float32, ``nearest_surface`` of the depths, 0 = unknown.
    intrinsics: G×3×3.  frame_from_frame: G×G×4×4, target first.
    """

    images: Tensor
    surfaces: Tensor
    intrinsics: Tensor
    frame_from_frame: Tensor

    @classmethod
    def of(cls, frames: Sequence[PosedFrame], config: ProjectiveConfig, device: torch.device | str) -> Group:
        """`frames` at the first one's size, less what ``config.size_of`` shrinks."""
        height, width = config.size_of(*frames[0].image.shape[:2])
        images, depths, intrinsics = zip(*(_resized(frame, height, width) for frame in frames))
        poses = np.stack([frame.world_from_camera for frame in frames])
        relative = np.linalg.inv(poses)[:, None] @ poses[None]  # in 64 bit: a world's origin may be far away
        images, depths, intrinsics, relative = (
            torch.from_numpy(np.stack(values)).to(device).float() for values in (images, depths, intrinsics, relative)
        )
        return cls(images[:, None] / 255, nearest_surface(depths, config.window, config.jump), intrinsics, relative)

    def warp(self, source: Tensor, target: Tensor, occlusion: float) -> Reprojection:
        """From frames `source` to frames `target`, B or 1 of each."""
        seen, other = (PosedView(self.surfaces[which], self.intrinsics[which]) for which in (source, target))
        return Reprojection(seen, other, self.frame_from_frame[target, source], window=0, occlusion=occlusion)


def label_scenes(
    detector: nn.Module, scenes: Sequence[PosedScene], limit: int, config: ProjectiveConfig, seed: int, cache: Path,
    device: torch.device,
) -> tuple[tuple[PosedScene, ...], AdaptedLabels]:
    """The scenes, or parts of them with about `limit` frames, and labels of all their frames in order (`SceneFrames`).

    Labels are read from `cache`, or made with `detector`, a Detect in evaluation mode on `device`, and kept there.
    Those of a group depend on the detector, the scene, the config, the seed and the group's place and nothing else.
    A frame that cannot be read has none.  Raises InputError for a scene without depth, and where the disk is full.
    """
    need_depth(scenes, PURPOSE)
    frames, parts = SceneFrames(scenes), draw_parts(scenes, limit, config.group, seed)
    folders = {number: cache / labels_key(detector, scenes[number].identity, config, seed)
               for number in {number for number, _, _ in parts}}
    groups = [(number, first, min(first + config.group, stop))
              for number, start, stop in parts for first in range(start, stop, config.group)]
    shards = [Shard(folders[number] / f"{first:06d}-{stop - first}.npz", frames.start(number) + np.arange(first, stop))
              for number, first, stop in groups]
    others = min(config.others, config.group - 1)
    lost: list[str] = []
    labels = kept_labels(shards, lambda indices: _label_group(detector, frames, indices, config, seed, device, lost),
                         config, f"frames, with {others} others mapped into each")
    if lost:
        log.warning("%d of %d frames cannot be read and have no labels; the first: %s", len(lost), len(labels.indices),
                    lost[0])
    return tuple(part_of(scenes[number], start, stop) for number, start, stop in parts), labels


def _label_group(
    detector: nn.Module, frames: SceneFrames, indices: np.ndarray, config: ProjectiveConfig, seed: int,
    device: torch.device, lost: list[str],
) -> Iterator[np.ndarray]:
    """Points of each of the frames of a group, none of those that cannot be read; why they cannot goes into `lost`."""
    scene, first = frames.locate(int(indices[0]))
    with ThreadPoolExecutor(4) as reader:
        read = list(reader.map(lambda number: _read(frames.scenes[scene], first + number, lost), range(len(indices))))
    readable = [frame for frame in read if frame is not None]
    drawn = draw_others(len(readable), config.others, np.random.default_rng([seed, 6, first]))
    points = iter(adapt_frames(detector, readable, drawn, config, device) if readable else ())
    for frame in read:
        yield np.zeros((0, 3), np.float32) if frame is None else next(points)


def adapt_frames(
    detect: Detect, frames: Sequence[PosedFrame], drawn: np.ndarray, config: ProjectiveConfig,
    device: torch.device | str = "cpu",
) -> list[np.ndarray]:
    """N×3 float32 (x, y, averaged probability), best first, of the points of each of G frames, in its own pixels.

    drawn: G×K, see ``draw_others``.
    """
    group = Group.of(frames, config, device)
    averaged = average_scores(detect_all(detect, group.images), group, drawn, config).cpu().numpy()
    return [config.select(scores, *frame.image.shape[:2]) for scores, frame in zip(averaged, frames)]


def draw_others(count: int, others: int, rng: np.random.Generator) -> np.ndarray:
    """count×K: for each of `count` frames, K = min(others, count − 1) others, drawn, as positions among them."""
    steps = np.argsort(rng.random((count, max(count - 1, 0))), axis=1)[:, :others] + 1
    return (np.arange(count)[:, None] + steps) % max(count, 1)


@torch.no_grad()
def detect_all(detect: Detect, images: Tensor) -> Tensor:
    """G×H×W float32 scores of G×1×H×W images, as many at a time as fit."""
    at_once = max(PIXELS_AT_ONCE // images[0].numel(), 1)
    with half_precision(images.device):
        maps = [detect(part.contiguous(memory_format=torch.channels_last))[0] for part in images.split(at_once)]
    return torch.cat(maps)[:, 0].float()


@torch.no_grad()
def average_scores(scores: Tensor, group: Group, drawn: np.ndarray, config: ProjectiveConfig) -> Tensor:
    """G×H×W float32: each frame's `scores` and those of the others that are `drawn` for it (G×K), averaged."""
    return AVERAGES[config.average](scores, group, drawn, config)


def _every_pixel(
    scores: Tensor, group: Group, drawn: np.ndarray, config: ProjectiveConfig, *, normalised: bool
) -> Tensor:
    """Each pixel looks up its score in the others that see it; divided by how many do, or by how many there are.

    Ours: the paper maps points the other way, which leaves holes, and asks nobody whether they are seen.
    """
    count, height, width = scores.shape
    total, seen = scores.flatten(1).clone(), torch.ones_like(scores).flatten(1)
    for other in range(count):
        takers = _takers(drawn, other, scores.device)
        for frames in takers.split(max(PIXELS_AT_ONCE // (height * width), 1)):
            at = torch.tensor([other], device=scores.device)
            points, _, visible = group.warp(frames, at, config.occlusion).pixels()
            visible &= inside(points, height, width, config.border)
            values = sample(scores[at][:, None].expand(len(frames), -1, -1, -1), points)[..., 0]
            total[frames] += values * visible
            seen[frames] += visible
    return (total / (seen if normalised else drawn.shape[1] + 1)).reshape(scores.shape)


def _patches(scores: Tensor, group: Group, drawn: np.ndarray, config: ProjectiveConfig, *, paired: bool) -> Tensor:
    """The paper's: the 3×3 scores round each point found in a frame are added where the point lies in the others.

    Divided by the number of frames, whether they see the place or not, and what hides it does not matter.
    Which points are mapped is not stated: ours are what is left of the scores by threshold and suppression.
    paired: each point's own scores; without it the public code's defect, that points which leave the image leave the
    list of places but not that of patches, so that all after them get the patch of another.
    """
    count, height, width = scores.shape
    total, padded = F.pad(torch.zeros_like(scores), [1] * 4), F.pad(scores, [1] * 4)
    for other in range(count):
        peaks, _ = find_peaks(scores[other].cpu().numpy(), height * width, radius=config.nms_radius,
                              border=config.border, threshold=config.threshold)
        points = torch.from_numpy(peaks).to(scores.device)
        patches = padded[other][_around(points)]
        total[other].index_put_(_around(points), patches, accumulate=True)
        takers = _takers(drawn, other, scores.device)
        places, _, visible = group.warp(torch.tensor([other], device=scores.device), takers, 0.0)(
            points.float().expand(len(takers), -1, -1))
        for frame, place, seen in zip(takers.tolist(), places, visible):
            mapped = patches[seen] if paired else patches[: int(seen.sum())]
            total[frame].index_put_(_around(place[seen].round().long()), mapped, accumulate=True)
    return total[:, 1:-1, 1:-1] / (drawn.shape[1] + 1)


def _takers(drawn: np.ndarray, other: int, device: torch.device) -> Tensor:
    """Positions of the frames that drew `other`."""
    return torch.from_numpy(np.flatnonzero((drawn == other).any(1))).to(device)


def _around(points: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, N×3×3, of the pixels round N×2 integer points in an image padded by one pixel."""
    steps = torch.arange(3, device=points.device)
    rows, columns = torch.broadcast_tensors(points[:, 1, None, None] + steps[:, None], points[:, 0, None, None] + steps)
    return rows, columns


AVERAGES: dict[str, Callable[[Tensor, Group, np.ndarray, ProjectiveConfig], Tensor]] = {
    "normalised": functools.partial(_every_pixel, normalised=True),
    "sum": functools.partial(_every_pixel, normalised=False),
    "patches": functools.partial(_patches, paired=True),
    "public": functools.partial(_patches, paired=False),
}


def part_of(scene: PosedScene, start: int, stop: int) -> PosedScene:
    """Frames `start` to `stop` − 1 of `scene`."""
    if (start, stop) == (0, len(scene)):
        return scene
    note = f"[{start}:{stop}]"
    return replace(scene.choose(np.arange(start, stop), note), name=f"{scene.name}{note}")


def draw_parts(scenes: Sequence[PosedScene], limit: int, group: int, seed: int) -> list[tuple[int, int, int]]:
    """Number of a scene, first frame and end, of parts that hold `limit` frames, up to the end of a group.

    All scenes, whole, where they have no more.  The parts of fewer frames are among those of more.
    """
    if limit >= sum(len(scene) for scene in scenes):
        return [(number, 0, len(scene)) for number, scene in enumerate(scenes) if len(scene)]
    spans = [(number, start, min(start + SPAN * group, len(scene)))
             for number, scene in enumerate(scenes) for start in range(0, len(scene), SPAN * group)]
    parts, left = [], limit
    for which in np.random.default_rng([seed, 7]).permutation(len(spans)):
        number, start, stop = spans[which]
        stop = min(stop, start + -(-left // group) * group)
        parts.append((number, start, stop))
        left -= stop - start
        if left <= 0:
            break
    return parts


def _read(scene: PosedScene, number: int, lost: list[str]) -> PosedFrame | None:
    try:
        return scene[number]
    except InputError as error:
        lost.append(f"{scene.name}: {error}")
        return None


def _resized(frame: PosedFrame, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey H×W uint8, depth and K of `frame` at another size; depths are picked, never mixed."""
    grey = cv2.resize(cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY), (width, height), interpolation=cv2.INTER_AREA)
    depth = np.zeros_like(frame.image[..., 0], np.float32) if frame.depth is None else frame.depth
    intrinsics = scale_homography(frame.intrinsics, np.ones(2), np.array([width, height]) / depth.shape[::-1])
    return grey, cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), intrinsics
