"""ROS image messages → numpy: raw, compressed and depth, in every encoding that users have.

Messages are duck-typed: rclpy's and rosbags' are read alike. Arrays are views of the message where the encoding
allows, so they may be read-only and may have padded rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from kp_frontend.errors import InputError


@dataclass(frozen=True)
class Encoding:
    """Layout of a pixel: `channels` values of `dtype`, and the cv2.cvtColor code that makes it BGR (None = as is)."""

    dtype: type
    channels: int
    code: int | None = None


# OpenCV names a Bayer pattern by its second row and column, ROS by its first: RGGB is OpenCV's BG.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2BGR,
    "bggr": cv2.COLOR_BayerRG2BGR,
    "gbrg": cv2.COLOR_BayerGR2BGR,
    "grbg": cv2.COLOR_BayerGB2BGR,
}
ENCODINGS: dict[str, Encoding] = {
    **{name: Encoding(np.uint8, 1) for name in ("mono8", "8UC1")},
    **{name: Encoding(np.uint16, 1) for name in ("mono16", "16UC1")},
    **{name: Encoding(np.uint8, 3) for name in ("bgr8", "8UC3")},
    **{name: Encoding(np.uint8, 4, cv2.COLOR_BGRA2BGR) for name in ("bgra8", "8UC4")},
    "rgb8": Encoding(np.uint8, 3, cv2.COLOR_RGB2BGR),
    "rgba8": Encoding(np.uint8, 4, cv2.COLOR_RGBA2BGR),
    "bgr16": Encoding(np.uint16, 3),
    "rgb16": Encoding(np.uint16, 3, cv2.COLOR_RGB2BGR),
    "bgra16": Encoding(np.uint16, 4, cv2.COLOR_BGRA2BGR),
    "rgba16": Encoding(np.uint16, 4, cv2.COLOR_RGBA2BGR),
    **{name: Encoding(np.uint8, 2, cv2.COLOR_YUV2BGR_UYVY) for name in ("yuv422", "uyvy")},
    **{name: Encoding(np.uint8, 2, cv2.COLOR_YUV2BGR_YUY2) for name in ("yuv422_yuy2", "yuyv")},
    **{f"bayer_{pattern}8": Encoding(np.uint8, 1, code) for pattern, code in _BAYER.items()},
    **{f"bayer_{pattern}16": Encoding(np.uint16, 1, code) for pattern, code in _BAYER.items()},
}
# Depth along z: (layout, metres per unit).
DEPTH_ENCODINGS: dict[str, tuple[Encoding, float]] = {
    "16UC1": (Encoding(np.uint16, 1), 1e-3),
    "mono16": (Encoding(np.uint16, 1), 1e-3),
    "32FC1": (Encoding(np.float32, 1), 1.0),
}
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# ConfigHeader of compressed_depth_image_transport.
_DEPTH_HEADER = np.dtype([("format", "<i4"), ("quant_a", "<f4"), ("quant_b", "<f4")])


def image_from_message(message: Any) -> np.ndarray:
    """Picture of a sensor_msgs/Image: H×W uint8 (grey) or H×W×3 uint8 (BGR).

    16-bit pixels keep their high byte, the full range mapped to the full range as cv_bridge does: a rule that
    does not change with the scene. A camera that fills only 10 or 12 of 16 bits should publish mono8.
    Raises InputError where data, size, step or encoding do not fit.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        return _through_cv_bridge(message)
    pixels = _pixels(message, encoding)
    if encoding.code is not None:
        if encoding.channels == 2 and pixels.shape[1] % 2:
            raise InputError(f"{message.encoding} image is {pixels.shape[1]} pixels wide, expected an even width")
        pixels = cv2.cvtColor(pixels, encoding.code)
    return _to_8_bit(pixels)


def depth_from_message(message: Any) -> np.ndarray:
    """Depth of a sensor_msgs/Image (16UC1 millimetres or 32FC1 metres): H×W float32 metres, 0 = unknown."""
    if message.encoding not in DEPTH_ENCODINGS:
        raise InputError(
            f"depth encoding {message.encoding!r} is unknown; publish 16UC1 (millimetres) or 32FC1 (metres)"
        )
    encoding, unit = DEPTH_ENCODINGS[message.encoding]
    return _metres(_pixels(message, encoding), unit)


def image_from_compressed(message: Any) -> np.ndarray:
    """Picture of a sensor_msgs/CompressedImage (JPEG, PNG …): H×W or H×W×3 BGR uint8.

    Raises InputError for a truncated JPEG too, which OpenCV would fill with grey without a word.
    """
    return _decode(bytes(message.data), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def depth_from_compressed(message: Any) -> np.ndarray:
    """Depth of a ``compressedDepth`` message, or of a bare 16-bit PNG in millimetres: H×W float32 metres, 0 = unknown.

    The 32FC1 kind holds quantised inverse depth: depth = A / (value - B), A and B in its 12-byte header.
    """
    data = bytes(message.data)
    start = 0 if data.startswith(_PNG) else _DEPTH_HEADER.itemsize
    if not data.startswith(_PNG, start):
        raise InputError(
            f"compressed depth of format {message.format!r} holds no PNG; "
            "set the publisher's compressedDepth format to png (rvl is not read)"
        )
    values = _decode(data[start:], cv2.IMREAD_UNCHANGED)
    if values.ndim != 2 or values.dtype != np.uint16:
        raise InputError(f"compressed depth is {values.shape} {values.dtype}, expected H×W uint16")
    if "32FC1" not in message.format or not start:
        return _metres(values, 1e-3)
    header = np.frombuffer(data, _DEPTH_HEADER, 1)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = header["quant_a"] / (values.astype(np.float32) - header["quant_b"])
    return np.where(values > 0, _metres(depth, 1.0), np.float32(0))


def to_gray(image: np.ndarray) -> np.ndarray:
    """H×W uint8 of an H×W or H×W×3 BGR uint8 image; a grey image is returned as it is."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def _pixels(message: Any, encoding: Encoding) -> np.ndarray:
    """View of the message's data, H×W or H×W×channels, of native byte order."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    dtype = np.dtype(encoding.dtype)
    row = width * encoding.channels * dtype.itemsize
    data = message.data if not isinstance(message.data, (list, tuple)) else np.array(message.data, np.uint8)
    data = np.frombuffer(data, np.uint8)
    seen = f"{width}×{height} {message.encoding} image"
    if height < 1 or width < 1:
        raise InputError(f"{seen}: expected at least one pixel")
    if step < row:
        raise InputError(f"{seen} has step {step}, expected at least {row} bytes a row")
    if len(data) < step * height:
        raise InputError(f"{seen} has {len(data)} bytes, expected step·height = {step * height}")
    strides = (step, encoding.channels * dtype.itemsize, dtype.itemsize)
    order = dtype.newbyteorder(">" if message.is_bigendian else "<")
    pixels = np.ndarray((height, width, encoding.channels), order, data, strides=strides).astype(dtype, copy=False)
    if step % dtype.itemsize:  # OpenCV takes no rows that begin between two pixels
        pixels = np.ascontiguousarray(pixels)
    return pixels[:, :, 0] if encoding.channels == 1 else pixels


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _metres(values: np.ndarray, unit: float) -> np.ndarray:
    """Values times `unit`, 0 where they are nan, infinite or negative."""
    if values.dtype == np.uint16:
        return values * np.float32(unit)
    return np.where((values > 0) & (values < np.inf), values, np.float32(0))


def _decode(data: bytes, flags: int) -> np.ndarray:
    if not data:
        raise InputError("compressed image holds no data")
    # No end marker after the last start of scan: cut. An end before it is an embedded thumbnail's.
    cut_jpeg = data.startswith(_JPEG) and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if cut_jpeg or (data.startswith(_PNG) and b"IEND" not in data):
        raise InputError(f"compressed image is truncated: {len(data)} bytes without an end marker")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"compressed image cannot be decoded ({error.err}); expected JPEG or PNG") from error
    if image is None:
        raise InputError(f"compressed image of {len(data)} bytes cannot be decoded; expected JPEG or PNG")
    return image


def _through_cv_bridge(message: Any) -> np.ndarray:
    """BGR picture by cv_bridge, which a full ROS 2 has, for encodings that the table lacks."""
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError:
        raise InputError(
            f"image encoding {message.encoding!r} is unknown; publish one of: {', '.join(sorted(ENCODINGS))}"
        ) from None
    try:
        return CvBridge().imgmsg_to_cv2(message, "bgr8")
    except (CvBridgeError, cv2.error, RuntimeError, TypeError) as error:
        raise InputError(f"image encoding {message.encoding!r} is unknown to us and to cv_bridge ({error})") from error
