"""Photo collections with poses: COLMAP, MegaDepth and BlendedMVS."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.geometry import invert
from kp_frontend.replay.scene_files import files_in, need, read_image
from kp_training.data.layouts.colmap import read_model
from kp_training.data.layouts.frames import FrameFiles, SceneKind, make_scene
from kp_training.data.posed import PosedScene

COLLECTION = SceneKind(metric=False, ordered=False, depth_factor=1.0)


def read_colmap(source: Path, name: str) -> PosedScene:
    """Photographs in ``imgs/`` or ``images/`` with a COLMAP model, and MegaDepth's ``depths/*.h5`` where they are.

    The model is looked for in the folder, in ``sparse/`` and ``sparse/0/``, and in those of the folder above.
    MegaDepth's own ``dense*`` folders hold none: put there that of the undistorted images (D2-Net's
    ``Undistorted_SfM/NNNN/sparse``), not that of the photographs as they were.
    Depth of 0 and below is unknown, the scale arbitrary.
    """
    photos = need(source / "imgs", source / "images")
    depths = source / "depths"
    found = []
    for image in read_model(_model(source)):
        depth = (depths / image.name).with_suffix(".h5") if depths.is_dir() else None
        photo = photos / image.name
        if not photo.is_file():  # MegaDepth's are .jpg whatever the model calls them
            photo = photo.with_suffix(".jpg")
        found.append(FrameFiles(photo, image.camera, image.pose, depth))
    return make_scene(name, source, found, COLLECTION)


def _model(source: Path) -> Path:
    places = [root / place for root in (source, source.parent)
              for place in ("", "sparse", "sparse/0")]
    for place in places:
        if any((place / f"images.{suffix}").is_file() for suffix in ("txt", "bin")):
            return place
    pickled = " (scene_info .npz files are not read: they hold pickled objects, which can run code)" \
        if any(source.glob("*.npz")) else ""
    raise InputError(f"{source} has no COLMAP model in itself, sparse or sparse/0, nor in the folder "
                     f"above{pickled}; poses and intrinsics are read from cameras and images as .txt or .bin")


def read_blended_mvs(source: Path, name: str) -> PosedScene:
    """BlendedMVS: ``blended_images/*.jpg``, ``rendered_depth_maps/*.pfm``, ``cams/*_cam.txt`` (camera_from_world)."""
    images = files_in(need(source / "blended_images"))
    cams, maps = need(source / "cams"), need(source / "rendered_depth_maps")
    found = []
    size: tuple[int, int] | None = None
    for image in images:
        cam = cams / f"{image.stem}_cam.txt"
        if not cam.is_file():  # the masked copy of each image has none
            continue
        if size is None:  # all renders of a scene have one size
            height, width = read_image(image).shape[:2]
            size = width, height
        matrix, pose = _read_cam(cam)
        found.append(FrameFiles(image, CameraModel(*size, matrix), pose, maps / f"{image.stem}.pfm"))
    if not found:
        raise InputError(f"{cams}: no *_cam.txt for one of {len(images)} images")
    return make_scene(name, source, found, COLLECTION)


def _read_cam(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """K and world_from_camera of ``extrinsic`` (4×4) and ``intrinsic`` (3×3)."""
    words = path.read_text(errors="replace").split()
    try:
        extrinsic, intrinsic = words.index("extrinsic") + 1, words.index("intrinsic") + 1
        pose = np.array(words[extrinsic : extrinsic + 16], float).reshape(4, 4)
        matrix = np.array(words[intrinsic : intrinsic + 9], float).reshape(3, 3)
    except ValueError as error:
        raise InputError(f"{path} has no extrinsic of 4×4 and intrinsic of 3×3 numbers: {error}") from None
    return matrix, invert(pose)
