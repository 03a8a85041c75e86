"""Writing ROS 2 bags of one camera, without ROS."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.quaternions import quaternions_from_poses
from kp_frontend.resources import make_folders

STORAGES = ("sqlite3", "mcap")
VERSIONS = (8, 9)
JPEG_QUALITY = 95
FRAME_ID = "camera"


class BagWriter:
    """A ROS 2 bag folder of one camera: images, calibration, depth, second image, ground truth.

    path: of the new bag; it appears there only when it is complete.
    camera: calibration of the images.  baseline: metres to the right camera of a rectified pair.
    storage: ``sqlite3`` (every ROS 2 reads it) or ``mcap``.  version: 9, or 8 for Humble and Iron.
    compressed: JPEG images and compressedDepth PNG instead of raw messages.
    overwrite: replace an existing bag; otherwise InputError, as where its folder cannot be made.

    Topics: ``/camera/image_raw``, ``/camera/camera_info``, ``/camera/depth/…``, ``/camera/right/…``, ``/ground_truth``.
    """

    def __init__(
        self,
        path: str | Path,
        camera: CameraModel,
        baseline: float | None = None,
        *,
        storage: str = "sqlite3",
        version: Literal[8, 9] = 9,
        compressed: bool = False,
        overwrite: bool = False,
    ) -> None:
        if storage not in STORAGES:
            raise unknown_name("storage", storage, STORAGES)
        if version not in VERSIONS:
            raise unknown_name("bag version", version, VERSIONS)
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise InputError(f"{self.path} exists; give --overwrite to replace it, or another name")
        if self.path.exists() and not (self.path / "metadata.yaml").is_file():
            raise InputError(f"{self.path} exists and is no ROS 2 bag; it is not replaced, give another name")
        self.camera = camera
        self.baseline = baseline
        self.compressed = compressed
        self._storage, self._version = storage, version
        self._partial = self.path.with_name(f".{self.path.name}.partial{os.getpid()}")
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> BagWriter:
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore

        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self._types = self._store.types
        make_folders(self.path.parent)
        shutil.rmtree(self._partial, ignore_errors=True)
        # The data file inside is named after the folder, so the partial bag lies in a folder of its own.
        inner = self._partial / self.path.name
        self._writer = Writer(inner, version=self._version, storage_plugin=StoragePlugin[self._storage.upper()])
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
                if self.path.exists():
                    shutil.rmtree(self.path)
                (self._partial / self.path.name).replace(self.path)
            else:
                self._writer.abort()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def write(
        self,
        stamp: int,
        image: np.ndarray,
        depth: np.ndarray | None = None,
        right: np.ndarray | None = None,
        world_from_camera: np.ndarray | None = None,
    ) -> None:
        """Write one instant.

        stamp: nanoseconds.  image, right: H×W or H×W×3 BGR uint8.  depth: H×W metres along z, 0 or nan = unknown.
        world_from_camera: 4×4, ground truth.
        """
        size = (self.camera.height, self.camera.width)
        for name, array in (("image", image), ("depth", depth), ("right image", right)):
            if array is not None and array.shape[:2] != size:
                raise InputError(f"{name} is {array.shape[1]}×{array.shape[0]}, but the camera {size[1]}×{size[0]}")
        if world_from_camera is not None:
            self.write_pose(stamp, world_from_camera)
        if depth is not None:
            self._write_info("/camera/depth/camera_info", stamp, 0.0)
            self._write_depth("/camera/depth/image_raw", stamp, depth)
        if right is not None:
            if self.baseline is None:
                raise InputError("a right image needs the baseline of the pair")
            self._write_info("/camera/right/camera_info", stamp, -self.camera.matrix[0, 0] * self.baseline)
            self._write_image("/camera/right/image_raw", stamp, right)
        self._write_info("/camera/camera_info", stamp, 0.0)
        self._write_image("/camera/image_raw", stamp, image)

    def write_pose(self, stamp: int, world_from_camera: np.ndarray) -> None:
        """Write ground truth (4×4, metres) at a stamp of its own."""
        make = self._types
        x, y, z = (float(value) for value in world_from_camera[:3, 3])
        qx, qy, qz, qw = (float(value) for value in quaternions_from_poses(world_from_camera[None])[0])
        pose = make["geometry_msgs/msg/Pose"](
            make["geometry_msgs/msg/Point"](x, y, z), make["geometry_msgs/msg/Quaternion"](qx, qy, qz, qw),
        )
        self._write("/ground_truth", stamp, make["geometry_msgs/msg/PoseStamped"](self._header(stamp, "world"), pose))

    def _write_image(self, topic: str, stamp: int, image: np.ndarray) -> None:
        image = np.ascontiguousarray(image)
        encoding = "mono8" if image.ndim == 2 else "bgr8"
        if self.compressed:
            data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].ravel()
            self._write_compressed(f"{topic}/compressed", stamp, f"{encoding}; jpeg compressed {encoding}", data)
        else:
            self._write_raw(topic, stamp, encoding, image)

    def _write_depth(self, topic: str, stamp: int, depth: np.ndarray) -> None:
        millimetres = np.nan_to_num(depth * 1e3, nan=0.0, posinf=0.0, neginf=0.0)
        millimetres = np.where(millimetres > 65535, 0, np.rint(millimetres)).astype(np.uint16)
        if self.compressed:
            # compressed_depth_image_transport's header: format (0 = not quantised) and two unused parameters.
            data = struct.pack("<iff", 0, 0.0, 0.0) + cv2.imencode(".png", millimetres)[1].tobytes()
            array = np.frombuffer(data, np.uint8)
            self._write_compressed(f"{topic}/compressedDepth", stamp, "16UC1; compressedDepth png", array)
        else:
            self._write_raw(topic, stamp, "16UC1", millimetres)

    def _write_raw(self, topic: str, stamp: int, encoding: str, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        make = self._types["sensor_msgs/msg/Image"]
        data = image.reshape(-1).view(np.uint8)
        self._write(topic, stamp, make(self._header(stamp), height, width, encoding, 0, data.size // height, data))

    def _write_compressed(self, topic: str, stamp: int, form: str, data: np.ndarray) -> None:
        self._write(topic, stamp, self._types["sensor_msgs/msg/CompressedImage"](self._header(stamp), form, data))

    def _write_info(self, topic: str, stamp: int, shift: float) -> None:
        camera, make = self.camera, self._types
        lens = camera.distortion
        if camera.model == "plumb_bob":
            lens = np.r_[lens, np.zeros(5 - len(lens))]  # the ROS driver convention: always five
        projection = np.zeros((3, 4))
        projection[:, :3] = camera.matrix
        projection[0, 3] = shift
        info = make["sensor_msgs/msg/CameraInfo"](
            self._header(stamp), camera.height, camera.width, camera.model,
            lens.copy(), camera.matrix.reshape(-1).copy(), np.eye(3).reshape(-1), projection.reshape(-1), 0, 0,
            make["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )
        self._write(topic, stamp, info)

    def _header(self, stamp: int, frame_id: str = FRAME_ID) -> Any:
        seconds, nanoseconds = divmod(int(stamp), 10**9)
        time = self._types["builtin_interfaces/msg/Time"](seconds, nanoseconds)
        return self._types["std_msgs/msg/Header"](time, frame_id)

    def _write(self, topic: str, stamp: int, message: Any) -> None:
        kind = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._store)
        self._writer.write(self._connections[topic], int(stamp), self._store.serialize_cdr(message, kind))
