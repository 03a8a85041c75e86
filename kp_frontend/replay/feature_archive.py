"""The features of a whole run in one npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.features import Features, Tracks


class FeatureArchive:
    """An npz file that grows frame by frame: ``STAMP/keypoints``, ``…/scores``, ``…/descriptors``, ``…/ids``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = written_whole(path)

    def __enter__(self) -> FeatureArchive:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(self._whole.__enter__(), "w", zipfile.ZIP_STORED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._zip.close()
        self._whole.__exit__(kind, error, trace)

    def add(self, stamp: int, features: Features, tracks: Tracks) -> None:
        """Append one frame."""
        columns = {name: getattr(features, name) for name in ("keypoints", "scores", "descriptors")}
        for name, array in {**columns, "ids": tracks.ids}.items():
            with self._zip.open(f"{stamp}/{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def read_features(path: Path) -> dict[int, Features]:
    """Features by stamp (ns) of an archive; InputError where the file is none."""
    try:
        with np.load(path) as archive:
            stamps = sorted({int(name.split("/")[0]) for name in archive.files})
            return {stamp: _features(archive, stamp) for stamp in stamps}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no archive of features: {error}") from None


def _features(archive: np.lib.npyio.NpzFile, stamp: int) -> Features:
    keypoints, scores, descriptors = (archive[f"{stamp}/{name}"] for name in ("keypoints", "scores", "descriptors"))
    return Features(keypoints, scores, descriptors, "hamming" if descriptors.dtype == np.uint8 else "l2")
