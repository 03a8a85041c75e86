"""Keypoint front-end for visual SLAM: extraction, matching, tracking and odometry, with and without ROS 2."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kp_frontend.extractors import load_extractor
    from kp_frontend.pipeline import Frontend

__all__ = ["Frontend", "load_extractor"]

try:
    __version__ = metadata.version("kp_frontend")
except metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+checkout"


def __getattr__(name: str):
    """Import the heavy names on first use, so that `--help` answers at once."""
    if name == "load_extractor":
        from kp_frontend.extractors import load_extractor

        return load_extractor
    if name == "Frontend":
        from kp_frontend.pipeline import Frontend

        return Frontend
    raise AttributeError(f"module 'kp_frontend' has no attribute {name!r}")
