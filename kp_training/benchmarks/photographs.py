"""Photographs for benchmarks, where nobody gives any."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.resources import cache_folder


def photographs(count: int = 256) -> Path:
    """A folder with `count` photographs of COCO's usual size, 640×480, cut from scikit-image's; made once."""
    folder = cache_folder("benchmark") / f"photos-{count}"
    if folder.is_dir():
        return folder
    from skimage import data

    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.hubble_deep_field(), data.retina()]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        (Path(beside) / "made").mkdir()
        for number in range(count):
            source = sources[number % len(sources)]
            height, width = (np.array(source.shape[:2]) * rng.uniform(0.6, 1, 2)).astype(int)
            y, x = rng.integers(0, np.array(source.shape[:2]) - (height, width) + 1)
            photo = cv2.resize(source[y : y + height, x : x + width, ::-1], (640, 480), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(f"{beside}/made/{number:04d}.jpg", photo)
        (Path(beside) / "made").rename(folder)
    return folder
