"""Homographic adaptation: what a detector finds in many views of a photograph, averaged, becomes its labels.

SuperPoint, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from kp_training.data.images import Images
from kp_training.geometry.homography import SuperPointHomographies, homography_from_corners, view_corners
from kp_training.geometry.sampling import inside, pixel_grid, sample, warp_points
from kp_training.labels.points import AdaptedLabels, Detect, LabelConfig, half_precision
from kp_training.labels.store import Shard, kept_labels, labels_key

SHARD = 32
AT_ONCE = 20


@dataclass(frozen=True)
class AdaptationConfig(LabelConfig):
    """Settings of homographic adaptation, with the values of rpautrat's public code; the others are LabelConfig's.

    warps: views of each image, of which the first is the image itself.  margin: pixels of a view's edge that do not
    count.
    """

    warps: int = 100
    margin: int = 3


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
    folder = cache / labels_key(detector, images.identity, config, seed)
    parts = [order[start : start + SHARD] for start in range(0, len(order), SHARD)]
    shards = [Shard(folder / f"{number:06d}-{len(part)}.npz", part) for number, part in enumerate(parts)]

    def label(indices: np.ndarray) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(1) as reader:  # images are read while others are labelled
            for index, photo in zip(indices, reader.map(lambda index: images[int(index)], indices)):
                grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
                yield adapt(detector, grey, config, np.random.default_rng([seed, 5, index]), device)

    return kept_labels(shards, label, config, f"images with {config.warps} views each")


def adapt(
    detect: Detect, grey: np.ndarray, config: AdaptationConfig, rng: np.random.Generator,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """N×3 float32 (x, y, averaged probability), best first, of the points of an H×W uint8 image."""
    height, width = config.size_of(*grey.shape)
    small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    image = torch.from_numpy(small).to(device)[None, None].float() / 255
    warps = np.stack([np.eye(3), *(_random_warp(rng, height, width) for _ in range(config.warps - 1))])
    scores = average_scores(detect, image, torch.from_numpy(warps).float().to(device), config.margin)
    return config.select(scores.cpu().numpy(), *grey.shape)


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
        with half_precision(views.device):
            scores = detect(views.contiguous(memory_format=torch.channels_last))[0].float()
        points = warp_points(torch.linalg.inv(image_from_view), grids)
        visible = inside(points, height, width, margin)
        total += (sample(scores, points)[..., 0] * visible).sum(0)
        seen += visible.sum(0)
    return (total / seen.clamp_min(1)).reshape(height, width)


def _random_warp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """3×3 image_from_view."""
    corners = view_corners(height, width)
    warped = SuperPointHomographies().sample(rng) * [width / 2, height / 2] + corners.mean(0)
    return homography_from_corners(corners, warped)
