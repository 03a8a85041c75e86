"""What every tracker is, however it follows its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.features import Features, Matches, Tracks

LARGEST_ID = 2**32 - 1


@dataclass(frozen=True)
class TrackerConfig:
    """Options of both trackers; lengths that follow the image size are shares of its longer side.

    window: largest radius of the search round a track's predicted place, as a share, narrower while predictions are
        good; 0 = search everywhere.
    ratio: largest distance of the best to the second best candidate; 1 = no test.
    max_distance: largest descriptor distance in the metric's unit; 0 = any.
    max_missed: frames for which an unseen track is still looked for.
    stereo_rows: pixels by which the rows of a rectified pair may differ.
    max_disparity: largest disparity of a stereo pair, as a share.
    flow_window: side in pixels of the patch that optical flow follows.  flow_levels: pyramid levels above the image.
    flow_error: pixels by which tracking forth and back may miss the start.
    min_distance: pixels between corners of the flow tracker.  quality: least corner score, share of the best.
    """

    window: float = 0.1
    ratio: float = 0.9
    max_distance: float = 0.0
    max_missed: int = 3
    stereo_rows: float = 2.0
    max_disparity: float = 0.2
    flow_window: int = 15
    flow_levels: int = 3
    flow_error: float = 0.5
    min_distance: int = 9
    quality: float = 0.005

    def __post_init__(self) -> None:
        for name, low, high in (
            ("window", 0, 1), ("ratio", 0.1, 1), ("max_missed", 0, 100), ("max_distance", 0, np.inf),
            ("stereo_rows", 0, 100), ("max_disparity", 0.001, 1), ("flow_window", 5, 101), ("flow_levels", 0, 8),
            ("flow_error", 0.01, 100), ("min_distance", 1, 200), ("quality", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"tracker option {name} is {getattr(self, name)}, expected {low} … {high}")


@dataclass(frozen=True, eq=False)
class Seen:
    """An image and what was found in it alone, without the frames before.

    image, mask, right: as given, or in grey.
    features: of the image; none where the tracker finds its points by following them.  right_features: of `right`.
    timings: milliseconds by stage (``extract``).
    """

    image: np.ndarray
    mask: np.ndarray | None
    right: np.ndarray | None
    features: Features
    right_features: Features | None
    timings: dict[str, float]


@dataclass(frozen=True, eq=False)
class Tracked:
    """What a tracker found in one frame.

    tracks: row by row with features.  matches: query = this frame, train = the frame before.
    timings: milliseconds by stage (``match`` or ``flow``, ``detect``), those of what was seen included.
    """

    features: Features
    tracks: Tracks
    matches: Matches
    timings: dict[str, float]


class TrackIds:
    """Hands out track ids: 1 … LARGEST_ID, then from 1 again, since 0 is no track."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` ids, uint32."""
        ids = (self._taken + np.arange(count)) % LARGEST_ID + 1
        self._taken = (self._taken + count) % LARGEST_ID
        return ids.astype(np.uint32)


class Tracker(Protocol):
    """Images in order of time → features with identities.

    name: as the user asked for it.  concurrent: whether several threads may be in `extract` at once.
    `extract` depends on its image only: one thread may be in it while another is in the rest, with an earlier image.
    """

    name: str

    @property
    def concurrent(self) -> bool: ...

    def track(self, image: np.ndarray, mask: np.ndarray | None = None) -> Tracked:
        """Extract and follow the next image."""
        return self.follow(self.extract(image, mask))

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None, right: np.ndarray | None = None) -> Seen:
        """What `image` (H×W or H×W×3 BGR uint8) shows, nothing where `mask` (H×W uint8) is 0.

        right: second image of a rectified pair, for `match_stereo`.
        """
        ...

    def follow(self, seen: Seen) -> Tracked:
        """Features of the next image, with identities."""
        ...

    def match_stereo(self, seen: Seen, features: Features) -> np.ndarray:
        """N float32 disparities in pixels (nan = none) of `features` of the image `seen` in its right image."""
        ...

    def reset(self) -> None:
        """Forget all tracks; their ids are not used again before all others have been."""
        ...
