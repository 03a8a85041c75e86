"""Where the package's data files lie: in a source checkout, under a virtual environment, or under ROS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kp_frontend.errors import InputError

_CHECKOUT = Path(__file__).resolve().parent.parent


def share_folders() -> list[Path]:
    """Folders that may hold ``models``, ``config`` and ``launch``, the nearest first."""
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    candidates = [_CHECKOUT, *(prefix / "share" / "kp_frontend" for prefix in [*prefixes, Path(sys.prefix)])]
    return [folder for folder in candidates if (folder / "config").is_dir()]


def find_resource(kind: str, name: str) -> Path:
    """Path of ``kind/name`` (as in ``models/kp2d_compact.onnx``); InputError where there is none."""
    for folder in share_folders():
        if (folder / kind / name).is_file():
            return folder / kind / name
    looked = ", ".join(str(folder / kind) for folder in share_folders()) or "no installed share folder"
    raise InputError(f"no file {name!r} in {kind} (looked in {looked})")


def model_names() -> list[str]:
    """Bare names of the models that ship with the package."""
    return sorted({path.stem for folder in share_folders() for path in (folder / "models").glob("*.onnx")})


def cache_folder(kind: str) -> Path:
    """Folder for what can be made again (labels, engines), created on demand; ``KP_FRONTEND_CACHE`` moves it.

    Raises InputError where it cannot be made.
    """
    base = os.environ.get("KP_FRONTEND_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kp_frontend"
    folder = (Path(base).expanduser() if base else home) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the cache folder {folder} ({error.strerror}); set KP_FRONTEND_CACHE to a folder "
                         "that can be written") from error
    return folder


def make_folders(*folders: Path | None) -> None:
    """Make those that are given; raises InputError where one cannot be made."""
    for folder in folders:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make folder {folder} ({error.strerror}); give another one") from error
