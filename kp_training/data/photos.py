"""A folder of photographs as training data; one in ten is kept from training."""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path

import numpy as np

from kp_frontend.errors import InputError
from kp_training.data.survey import MINIMUM_SIDE, SUFFIXES, read_photo, survey

log = logging.getLogger(__name__)


class PhotoFolder:
    """The photographs under a folder, by index, as H×W×3 BGR uint8.

    held_out: give the tenth that is kept from training (chosen by a hash of the file's name, so that it stays
    the same when photographs come and go) instead of the nine tenths for training.
    What is no image, too small or cut short is left out, with one warning that counts it (``survey``).  A photograph
    that can no longer be read later on is replaced by the next one, with a warning.
    Raises InputError where the folder is missing or holds no usable photograph.
    """

    def __init__(self, folder: str | Path, held_out: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"photos:{folder} is no folder; give a folder of photographs")
        found = survey(self.folder)
        self.files = [file for file in found.usable if is_held_out(Path(file.name).name) == held_out]
        if not self.files:
            kind = "held-out photograph" if held_out else "photograph for training"
            raise InputError(f"photos:{folder} holds no {kind} ({found}); give a folder "
                             f"with {', '.join(sorted(SUFFIXES))} files of at least {MINIMUM_SIDE} pixels a side")

    @functools.cached_property
    def identity(self) -> str:
        """Of the files' names, sizes and times of change."""
        return "photos:" + hashlib.sha256(repr([tuple(file) for file in self.files]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / file.name for file in self.files]

    def __getitem__(self, index: int) -> np.ndarray:
        for step in range(len(self.files)):
            path = self.folder / self.files[(index + step) % len(self.files)].name
            image = read_photo(path)
            if image is not None:
                return image
            _warn_of_loss(path)
        raise InputError(f"photos:{self.folder}: not one of {len(self.files)} photographs can be read any more; "
                         "mount the folder again and resume")


def is_held_out(name: str) -> bool:
    """Whether the photograph of this file name belongs to the tenth that training never sees."""
    return hashlib.sha256(name.encode()).digest()[0] < 26


@functools.cache
def _warn_of_loss(path: Path) -> None:
    log.warning("%s was readable when training began and is not now; the next photograph takes its place", path)
