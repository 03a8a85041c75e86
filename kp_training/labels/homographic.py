"""Homographic adaptation: what a detector finds in many views of a photograph, averaged, becomes its labels.

SuperPoint, section 5.  Labels are kept on disk, so that a run that was stopped goes on where it was, and one that was
made before is not made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from kp_frontend.decoding import find_peaks
from kp_frontend.errors import InputError
from kp_training.data.images import Images
from kp_training.geometry.homography import SuperPointHomographies, homography_from_corners, view_corners
from kp_training.geometry.sampling import inside, pixel_grid, sample, warp_points

SHARD = 32
"""Images in a file: what a killed run does again at most."""
AT_ONCE = 20
FORMAT = 1

Detect = Callable[[Tensor], Sequence[Tensor]]
"""Grey B×1×H×W in [0, 1] → maps, of which the first are probabilities B×1×H×W."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of homographic adaptation, with the values of rpautrat's public code.

    warps: views of each image, of which the first is the image itself.  height, width: an image larger than
    height × width is shrunk to as many pixels, to sides of `multiple`.  margin: pixels of a view's edge that do not
    count.  threshold: of the averaged probability.  nms_radius, border: pixels.
    fewest, points: so many of an image are kept at least, whatever their probability, and at most.  The code has no
    `fewest`; without it, a detector that learned little labels nearly nothing, and the next one learns to find nothing.
    """

    warps: int = 100
    height: int = 240
    width: int = 320
    multiple: int = 8
    margin: int = 3
    threshold: float = 0.015
    nms_radius: int = 4
    border: int = 4
    fewest: int = 100
    points: int = 600


@dataclass(frozen=True)
class AdaptedLabels:
    """Points of labelled images, in the images' own pixels.

    indices: M, index of each image in its source.  starts: M + 1, where each one's points begin in `points`.
    points: N×3 float32 (x, y, probability).
    """

    indices: np.ndarray
    starts: np.ndarray
    points: np.ndarray

    def __call__(self, position: int) -> np.ndarray:
        """N×3 points of the image at `position` among the labelled ones."""
        return self.points[self.starts[position] : self.starts[position + 1]]


class LabelledImages:
    """The labelled ones of `images`, in the order of the labels."""

    def __init__(self, images: Images, labels: AdaptedLabels) -> None:
        self.images, self.indices = images, labels.indices
        self.identity = f"{images.identity}[{hashlib.sha256(labels.indices.tobytes()).hexdigest()[:16]}]"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.images[int(self.indices[position])]


def label_images(
    detector: nn.Module, images: Images, count: int, config: AdaptationConfig, seed: int, cache: Path,
    device: torch.device,
) -> AdaptedLabels:
    """Labels of `count` images, drawn by `seed`, from `cache` or made with `detector` and kept there.

    detector: a Detect in evaluation mode on `device`.
    An image's labels depend on the detector, the image, the config, (seed, index) and nothing else.
    Raises InputError where the disk is full.
    """
    order = np.random.default_rng([seed, 4]).permutation(len(images))[:count]
    folder = cache / _key(detector, images, config, seed)
    shards = [order[start : start + SHARD] for start in range(0, len(order), SHARD)]
    files = [folder / f"{number:06d}-{len(shard)}.npz" for number, shard in enumerate(shards)]
    found = [_read(file, len(shard)) for file, shard in zip(files, shards)]
    missing = sum(len(shard) for shard, labels in zip(shards, found) if labels is None)
    if missing:
        with _progress(len(order), len(order) - missing, config.warps) as advance:
            for number, (file, shard) in enumerate(zip(files, shards)):
                if found[number] is None:
                    made = _label_shard(detector, images, shard, config, seed, device, advance)
                    _write(file, made)
                    found[number] = made
    counts, points = (np.concatenate(parts) for parts in zip(*(labels for labels in found if labels is not None)))
    if len(points) < len(order):
        log.warning("the detector found %d points in %d images, too few to learn from; train it longer, or lower "
                    "adapt_threshold (now %g)", len(points), len(order), config.threshold)
    return AdaptedLabels(order, np.concatenate([[0], np.cumsum(counts)]), points)


def _label_shard(
    detector: nn.Module, images: Images, shard: np.ndarray, config: AdaptationConfig, seed: int,
    device: torch.device, advance: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Number of points of each image, and all their points; images are read while others are labelled."""
    labelled = []
    with ThreadPoolExecutor(1) as reader:
        for index, photo in zip(shard, reader.map(lambda index: images[int(index)], shard)):
            grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
            labelled.append(adapt(detector, grey, config, np.random.default_rng([seed, 5, index]), device))
            advance()
    return np.array([len(points) for points in labelled]), np.concatenate(labelled)


def adapt(
    detect: Detect, grey: np.ndarray, config: AdaptationConfig, rng: np.random.Generator,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """N×3 float32 (x, y, averaged probability), best first, of the points of an H×W uint8 image."""
    height, width = grey.shape
    factor = min(1.0, np.sqrt(config.height * config.width / (height * width)))
    size = [max(config.multiple, round(side * factor / config.multiple) * config.multiple) for side in (width, height)]
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    image = torch.from_numpy(small).to(device)[None, None].float() / 255
    warps = np.stack([np.eye(3), *(_random_warp(rng, *small.shape) for _ in range(config.warps - 1))])
    scores = average_scores(detect, image, torch.from_numpy(warps).float().to(device), config.margin).cpu().numpy()
    peaks, values = find_peaks(scores, config.points, radius=config.nms_radius, border=config.border)
    kept = max((values > config.threshold).sum(), config.fewest)
    points = (peaks[:kept] + 0.5) * (np.array([width, height]) / size) - 0.5
    return np.column_stack([points, values[:kept].clip(0, 1)]).astype(np.float32)


@torch.no_grad()
def average_scores(detect: Detect, image: Tensor, image_from_views: Tensor, margin: int) -> Tensor:
    """H×W float32: mean of what `detect` gives for a 1×1×H×W image over the views that see a pixel, 0 where none does.

    image_from_views: N×3×3.  margin: pixels of a view's edge that do not count.
    """
    height, width = image.shape[-2:]
    grid = pixel_grid(height, width, image.device).reshape(1, -1, 2)
    total, seen = torch.zeros(2, height * width, device=image.device)
    for image_from_view in image_from_views.split(AT_ONCE):
        number = len(image_from_view)
        grids, copies = grid.expand(number, -1, -1), image.expand(number, -1, -1, -1)
        views = sample(copies, warp_points(image_from_view, grids)).transpose(1, 2).reshape(number, 1, height, width)
        with _autocast(views.device):
            scores = detect(views.contiguous(memory_format=torch.channels_last))[0].float()
        points = warp_points(torch.linalg.inv(image_from_view), grids)
        visible = inside(points, height, width, margin)
        total += (sample(scores, points)[..., 0] * visible).sum(0)
        seen += visible.sum(0)
    return (total / seen.clamp_min(1)).reshape(height, width)


def _autocast(device: torch.device) -> torch.autocast:
    """Half precision where it is quick: it moves a mean over views by less than another draw of views does."""
    quick = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, enabled=quick)


def _random_warp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """3×3 image_from_view."""
    corners = view_corners(height, width)
    warped = SuperPointHomographies().sample(rng) * [width / 2, height / 2] + corners.mean(0)
    return homography_from_corners(corners, warped)


def _key(detector: nn.Module, images: Images, config: AdaptationConfig, seed: int) -> str:
    digest = hashlib.sha256(repr((FORMAT, images.identity, asdict(config), seed)).encode())
    for name, values in detector.state_dict().items():
        digest.update(name.encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(file: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What `file` holds of `count` images, None where it is not there or was cut short."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            counts, points = stored["counts"], stored["points"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (counts, points) if len(counts) == count and counts.sum() == len(points) else None


def _write(file: Path, labels: tuple[np.ndarray, np.ndarray]) -> None:
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as stream:
            np.savez(stream, counts=labels[0], points=labels[1])
        os.replace(beside, file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"labels cannot be kept in {file.parent} ({error.strerror}); free some space there, or set "
                         "KP_FRONTEND_CACHE to a folder that has it, and resume the run") from error


@contextmanager
def _progress(total: int, done: int, warps: int) -> Iterator[Callable[[], None]]:
    """Gives what to call after each image: a bar on a terminal, and everywhere a line before and after."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console, start, made = Console(), time.monotonic(), 0
    columns = (TextColumn("labels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[speed]:.2f} images/s"))

    print(f"labelling {total - done} images with {warps} views each ({done} are there)", flush=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("labels", total=total, completed=done, speed=0.0)

        def advance() -> None:
            nonlocal made
            made += 1
            bar.update(task, advance=1, speed=made / (time.monotonic() - start))

        yield advance
    seconds = time.monotonic() - start
    print(f"labelled {made} images in {seconds / 60:.1f} minutes, {made / seconds:.2f} images/s", flush=True)
