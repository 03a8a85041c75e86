"""Views of labelled photographs under random homographies: the n-th view is a function of (seed, n)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kp_frontend.errors import unknown_name
from kp_training.augment import apply_style
from kp_training.data.corners import draw_labels
from kp_training.data.images import Images
from kp_training.data.pairs import GEOMETRIES, PairConfig
from kp_training.geometry.homography import warp_points
from kp_training.geometry.views import to_channels, warp_cells, warp_view


class ViewBatch(NamedTuple):
    """B views.

    image: B×1×H×W uint8.  labels: B×H×W uint8, strength of the point at that pixel (``data.corners``), 0 = none.
    mask: B×H×W bool, where the labels are to be believed.
    """

    image: Tensor
    labels: Tensor
    mask: Tensor


class Labels(Protocol):
    """Points of photographs, and where there is something to say."""

    def __call__(self, index: int) -> np.ndarray:
        """N×3 float32 (x, y, strength in (0, 1]) of a photograph in its pixels."""
        ...

    def known_cells(self, index: int, height: int, width: int) -> np.ndarray:
        """h×w bool over a whole photograph of height×width, where its labels are to be believed."""
        ...


class LabelledViews(Dataset):
    """Endless grey views, each one of the two of a homography pair; item n depends on the arguments and n alone.

    usable: indices of the photographs that views are made of.
    """

    def __init__(self, images: Images, usable: np.ndarray, labels: Labels, config: PairConfig, seed: int) -> None:
        if config.geometry not in GEOMETRIES:
            raise unknown_name("pair geometry", config.geometry, GEOMETRIES)
        self.images, self.usable, self.labels, self.config, self.seed = images, usable, labels, config, seed

    def __getitem__(self, number: int) -> ViewBatch:
        epoch, position = divmod(number, len(self.usable))
        index = int(np.random.default_rng([self.seed, 1, epoch]).permutation(self.usable)[position])
        rng = np.random.default_rng([self.seed, 2, number])
        photo = cv2.cvtColor(self.images[index], cv2.COLOR_BGR2GRAY)
        size = (self.config.height, self.config.width)
        photo_from_view = GEOMETRIES[self.config.geometry](photo.shape, self.config, rng)[rng.integers(2)]
        view, _ = warp_view(photo, photo_from_view, *size)
        x, y, strengths = self.labels(index).T
        points = warp_points(np.linalg.inv(photo_from_view), np.column_stack([x, y]))
        labels = torch.from_numpy(draw_labels(points, strengths, *size))
        mask = warp_cells(self.labels.known_cells(index, *photo.shape), photo.shape, photo_from_view, *size)
        return ViewBatch(to_channels(apply_style(view, self.config.style, rng)), labels, torch.from_numpy(mask))
