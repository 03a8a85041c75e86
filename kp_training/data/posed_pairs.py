"""Two views of one scene with depth and relative pose: the n-th pair is a function of (seed, n)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.geometry import invert, so3_exp
from kp_training.augment import STYLES, apply_style
from kp_training.data.corners import draw_labels
from kp_training.data.pair_choice import CHOICES
from kp_training.data.posed import PosedFrame, PosedScene, SceneFrames
from kp_training.geometry.homography import scale_homography, warp_points
from kp_training.geometry.views import to_channels, warp_cells
from kp_training.geometry.warps import PosedView, Reprojection

ATTEMPTS = 100
LEAST_SHARED = 0.01
"""Of the pixels of a view, that the other view of a pair sees, too: fewer may be none where a loss looks at cells."""
STEP = 4
"""Pixels between those that are looked at for that."""

log = logging.getLogger(__name__)


class PosedBatch(NamedTuple):
    """B pairs of views, 0 and 1.

    image0, image1: B×C×H×W uint8 (grey, or RGB).  depth0, depth1: B×H×W float32 along z, 0 = unknown.
    intrinsics0, intrinsics1: B×3×3 float32, K of the views.  view1_from_view0: B×4×4 float32, in the unit of depth.
    mask0, mask1: B×H×W bool, where the view shows its frame.
    labels0, labels1: B×H×W uint8, strength of the point at that pixel (``data.corners``), 0 = none.
    known0, known1: B×H×W bool, where the labels are to be believed.
    """

    image0: Tensor
    image1: Tensor
    depth0: Tensor
    depth1: Tensor
    intrinsics0: Tensor
    intrinsics1: Tensor
    view1_from_view0: Tensor
    mask0: Tensor
    mask1: Tensor
    labels0: Tensor
    labels1: Tensor
    known0: Tensor
    known1: Tensor

    def warp(self) -> Reprojection:
        """From view 0 to view 1."""
        return Reprojection(PosedView(self.depth0, self.intrinsics0, self.mask0),
                            PosedView(self.depth1, self.intrinsics1, self.mask1), self.view1_from_view0)


@dataclass(frozen=True)
class PosedPairConfig:
    """How pairs are chosen and made.

    choice: ``overlap`` (of what both frames see, by depth, between least_overlap and most_overlap), ``offset``
        (frames between least_offset and most_offset apart, either way; in proportion less in shorter scenes), or
        ``rotation`` (by pose alone: viewing directions at most largest_rotation degrees apart, and an overlap of at
        least least_overlap, were all that is seen as far away as where the optical axes cross).
    least_parallax: least distance between the cameras of a pair by overlap or rotation, in distances to the scene
        (`scene_distance`), for who learns from epipolar lines: without a baseline they are those of the poses' errors.
    style: photometric style of ``augment``.  color: ``gray`` or ``rgb``.  height, width: of the views in pixels.
    aspect: ``crop`` (the largest part of the frame of the view's aspect, drawn anew for each view) or ``stretch``.
    closest: both views show a part of their frame, up to so many times larger than the whole would be: anywhere in the
        first, in the second about what the middle of the first shows (where its depth is known, else anywhere), so
        that frames larger than the views are also seen at the scale that the network meets them at.
    view_share: share of pairs whose second view is another one from the same place: zoomed by `zoom_low` to
        `zoom_high`, rolled by up to `roll` degrees either way (the Aug variant of silk_prp: .7, .7 to 1.3, 90).
    """

    choice: str = "overlap"
    least_overlap: float = 0.3
    most_overlap: float = 0.95
    least_offset: int = 70
    most_offset: int = 149
    largest_rotation: float = 80.0
    least_parallax: float = 0.0
    style: str = "camera"
    color: str = "gray"
    height: int = 240
    width: int = 320
    aspect: str = "crop"
    closest: float = 1.0
    view_share: float = 0.0
    zoom_low: float = 0.7
    zoom_high: float = 1.3
    roll: float = 90.0


class View(NamedTuple):
    """What a virtual camera at the place of a frame's camera sees; the arrays as in PosedBatch, without B.

    view_from_frame: 3×3 float64, pixels.  world_from_view: 4×4 float64.  frame_size: its height and width.
    """

    image: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    intrinsics: np.ndarray
    view_from_frame: np.ndarray
    world_from_view: np.ndarray
    frame_size: tuple[int, int]


class PosedPairs(Dataset):
    """Endless pairs of views of scenes; item n, a PosedBatch, depends on `scenes`, `config`, `seed` and n alone.

    A scene is drawn by the square root of how many pairs it has, then one of its pairs, then which frame comes first.
    points: running index of a frame (``SceneFrames``) → N×3 float32 (x, y, strength in (0, 1]) in the frame's pixels,
    that the labels are drawn from; None for no labels.  known_cells: see ``Labels``; None for all.
    A frame that cannot be read is counted (`unreadable`), and another pair takes its place, as of two views that share
    less than LEAST_SHARED by their depth, if they have one and were not chosen by pose alone: they teach nothing.
    Raises InputError where no two frames go together.
    """

    def __init__(
        self, scenes: Sequence[PosedScene], config: PosedPairConfig, seed: int,
        points: Callable[[int], np.ndarray] | None = None,
        known_cells: Callable[[int, int, int], np.ndarray] | None = None,
    ) -> None:
        for kind, name, table in (("choice of pairs", config.choice, CHOICES), ("aspect", config.aspect, RESIZES),
                                  ("photometric style", config.style, STYLES)):
            if name not in table:
                raise unknown_name(kind, name, table)
        self.frames, self.config, self.seed = SceneFrames(scenes), config, seed
        self.points, self.known_cells = points, known_cells
        chosen = [CHOICES[config.choice](scene, config) for scene in scenes]
        self.pairs = [pairs for pairs, _ in chosen]
        counts = np.array([len(pairs) for pairs in self.pairs])
        if not counts.any():
            raise InputError(f"no two of {len(self.frames)} frames in {len(scenes)} scenes go together: "
                             f"{chosen[0][1]}; look at the scenes with kp_training check_scene")
        if not counts.all():
            without = [scene.name for scene, count in zip(scenes, counts) if not count]
            log.warning("%d of %d scenes hold no pair of frames and are left out: %s; the first: %s", len(without),
                        len(scenes), ", ".join(without[:5]), next(why for pairs, why in chosen if not len(pairs)))
        weights = np.sqrt(counts).cumsum()
        self.shares = weights / weights[-1]
        self.unreadable: set[int] = set()

    def __getitem__(self, number: int) -> PosedBatch:
        rng = np.random.default_rng([self.seed, 2, number])
        made = None
        for _ in range(ATTEMPTS):
            scene = int(np.searchsorted(self.shares, rng.random(), side="right"))
            pair = self.pairs[scene][rng.integers(len(self.pairs[scene]))]
            indices = [self.frames.start(scene) + int(frame) for frame in rng.permutation(pair)]
            frames = [self._read(index) for index in indices]
            if None in frames:
                continue
            made = indices, self._views(frames, rng)
            tells = self.config.choice != "rotation" and all(frame.depth is not None for frame in frames)
            if not tells or share_something(*made[1]):
                break
        if made is not None:  # of scenes where hardly any two see the same, the last that was drawn
            return self._batch(*made, rng)
        raise InputError(f"{len(self.unreadable)} frames could not be read, and no pair was left in {ATTEMPTS} draws; "
                         "mount the scenes again, or look at them with kp_training check_scene")

    def _read(self, index: int) -> PosedFrame | None:
        scene, frame = self.frames.locate(index)
        try:
            return self.frames.scenes[scene][frame]
        except InputError as error:
            if index not in self.unreadable:
                self.unreadable.add(index)
                self._say(error, len(self.unreadable))
            return None

    @staticmethod
    def _say(error: InputError, count: int) -> None:
        """Of the first such frame, the tenth and so on, and by one loader process of all."""
        worker = get_worker_info()
        if (worker is None or worker.id == 0) and str(count).strip("0") == "1":
            log.warning("%s; another pair takes its place (frames that could not be read: %d)", error, count)

    def _views(self, frames: list[PosedFrame], rng: np.random.Generator) -> list[View]:
        config = self.config
        zoom, roll, closer, middles = 1.0, None, 1.0, [None, None]
        if rng.random() < config.view_share:
            zoom = rng.uniform(config.zoom_low, config.zoom_high)
            roll = np.radians(rng.uniform(-config.roll, config.roll))
        if config.closest > 1:
            closer = config.closest ** rng.random()
            middles = _common_middles(frames, closer, rng)
        return [make_view(frames[0], config, rng, closer, None, middles[0]),
                make_view(frames[1], config, rng, closer * zoom, roll, middles[1])]

    def _batch(self, indices: list[int], views: list[View], rng: np.random.Generator) -> PosedBatch:
        images = [to_channels(apply_style(view.image, self.config.style, rng)) for view in views]
        view1_from_view0 = invert(views[1].world_from_view) @ views[0].world_from_view
        labels = [self._labels(index, view.view_from_frame) for index, view in zip(indices, views)]
        known = [self._known(index, view) for index, view in zip(indices, views)]
        return PosedBatch(
            *images, *(torch.from_numpy(view.depth) for view in views),
            *(torch.from_numpy(view.intrinsics).float() for view in views), torch.from_numpy(view1_from_view0).float(),
            *(torch.from_numpy(view.mask) for view in views), *labels, *map(torch.from_numpy, known),
        )

    def _labels(self, index: int, view_from_frame: np.ndarray) -> Tensor:
        height, width = self.config.height, self.config.width
        if self.points is None:
            return torch.zeros((height, width), dtype=torch.uint8)
        x, y, strengths = self.points(index).T
        points = warp_points(view_from_frame, np.column_stack([x, y]))
        return torch.from_numpy(draw_labels(points, strengths, height, width))

    def _known(self, index: int, view: View) -> np.ndarray:
        """H×W bool."""
        if self.known_cells is None:
            return view.mask
        cells = self.known_cells(index, *view.frame_size)
        return warp_cells(cells, view.frame_size, np.linalg.inv(view.view_from_frame), *view.mask.shape)


def _common_middles(frames: Sequence[PosedFrame], closer: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Pixels of both frames for the middles of views `closer` times as large, that stay within the frames."""
    sizes = [np.array(frame.image.shape[1::-1]) for frame in frames]
    room = 0.5 / closer
    middles = [rng.uniform(room, 1 - room, 2) * size - 0.5 for size in sizes]
    x, y = np.rint(middles[0]).astype(int)
    depth = 0.0 if frames[0].depth is None else frames[0].depth[y, x]
    if depth > 0:
        second_from_first = invert(frames[1].world_from_camera) @ frames[0].world_from_camera
        point = np.linalg.inv(frames[0].intrinsics) @ [*middles[0], 1.0] * depth
        seen = frames[1].intrinsics @ (second_from_first[:3, :3] @ point + second_from_first[:3, 3])
        if seen[2] > 0:
            middles[1] = np.clip(seen[:2] / seen[2], room * sizes[1] - 0.5, (1 - room) * sizes[1] - 0.5)
    return middles


def share_something(first: View, second: View) -> bool:
    """Whether the second view sees LEAST_SHARED of the first one's pixels or more, by the depth of both."""
    coarse = np.diag([1 / STEP, 1 / STEP, 1])
    views = [PosedView(torch.from_numpy(view.depth[::STEP, ::STEP].copy())[None],
                       torch.from_numpy(coarse @ view.intrinsics).float()[None],
                       torch.from_numpy(view.mask[::STEP, ::STEP].copy())[None]) for view in (first, second)]
    second_from_first = torch.from_numpy(invert(second.world_from_view) @ first.world_from_view).float()[None]
    seen = Reprojection(*views, second_from_first, window=0).pixels()
    return bool(seen.visible.float().mean() >= LEAST_SHARED)


def make_view(
    frame: PosedFrame, config: PosedPairConfig, rng: np.random.Generator, zoom: float = 1.0, roll: float | None = None,
    middle: np.ndarray | None = None,
) -> View:
    """A view of a frame as `config` asks for; with `roll`, that of a camera turned by so many radians clockwise about
    its optical axis, with `zoom` times its focal length and the same point, or the frame's pixel `middle`, in its
    middle.

    Neither changes depth along z.  The image is shrunk by area; depth is that of the nearest pixel, never a mean.
    """
    image = frame.image if config.color == "rgb" else cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
    size, target = np.array(image.shape[1::-1]), np.array([config.width, config.height])
    fitted = np.maximum(np.rint(size * RESIZES[config.aspect](size, target)), target)
    corner = rng.integers(0, fitted - target + 1)
    resized = np.maximum(np.rint(zoom * fitted), 1)
    intrinsics = scale_homography(frame.intrinsics, np.ones(2), resized / size)
    turn, view_from_resized = np.eye(4), np.eye(3)
    view_from_resized[:2, 2] = -corner
    if roll is not None:
        turn[:3, :3] = so3_exp(np.array([0, 0, roll]))
        view_from_resized = intrinsics @ turn[:3, :3].T @ np.linalg.inv(intrinsics)
    if roll is not None or middle is not None:
        kept = (corner + target / 2) / fitted if middle is None else (middle + 0.5) / size
        moved = warp_points(view_from_resized, kept[None] * resized - 0.5)[0]
        view_from_resized[:2, 2] += (target - 1) / 2 - moved
    view_from_frame = view_from_resized @ scale_homography(np.eye(3), np.ones(2), resized / size)
    depth = np.zeros(frame.image.shape[:2], np.float32) if frame.depth is None else frame.depth
    depth, mask = (_nearest(values, view_from_frame, target) for values in (depth, np.ones(depth.shape, np.uint8)))
    # Of a turn there is left in K, beside the pose, only the shift of the principal point.
    intrinsics = view_from_resized @ intrinsics @ turn[:3, :3]
    return View(_picture(image, resized, view_from_resized, target), depth, mask.astype(bool), intrinsics,
                view_from_frame, frame.world_from_camera @ turn, frame.image.shape[:2])


def _picture(image: np.ndarray, resized: np.ndarray, view_from_resized: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The view of `size` (width, height) of an image after it was `resized`, mirrored beyond its border."""
    shrinks = (resized < image.shape[1::-1]).any()
    image = cv2.resize(image, resized.astype(int).tolist(),
                       interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.warpAffine(image, view_from_resized[:2], size.tolist(), borderMode=cv2.BORDER_REFLECT_101)


def _nearest(values: np.ndarray, view_from_frame: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The values of the nearest pixels of a frame in a view of `size` (width, height), 0 outside the frame."""
    return cv2.warpAffine(values, view_from_frame[:2], size.tolist(), flags=cv2.INTER_NEAREST)


RESIZES = {"crop": lambda size, target: (target / size).max(), "stretch": lambda size, target: target / size}
