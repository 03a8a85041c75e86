"""Image messages → arrays: every encoding, padded and swapped bytes, and messages that cannot be used."""

from __future__ import annotations

import array
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data

from kp_frontend.errors import InputError
from kp_frontend.images import (
    ENCODINGS,
    depth_from_compressed,
    depth_from_message,
    image_from_compressed,
    image_from_message,
    to_gray,
)


def message(pixels: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False) -> SimpleNamespace:
    """A sensor_msgs/Image with `padding` bytes of rubbish after each row."""
    height, width = pixels.shape[:2]
    swapped = pixels.astype(pixels.dtype.newbyteorder(">" if bigendian else "<"))
    rows = np.frombuffer(swapped.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=251)
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, step=rows.shape[1], data=rows.tobytes(), is_bigendian=bigendian
    )


def compressed(data: bytes, kind: str = "jpeg") -> SimpleNamespace:
    return SimpleNamespace(format=kind, data=data)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return cv2.cvtColor(skimage.data.astronaut()[:120, :160], cv2.COLOR_RGB2BGR)


@pytest.mark.parametrize("padding", [0, 3, 64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("layout", ["mono", "bgr", "rgb", "bgra", "rgba"])
def test_plain_encodings_are_exact(photo, layout, wide, padding, bigendian):
    order = {"mono": [0], "bgr": [0, 1, 2], "rgb": [2, 1, 0], "bgra": [0, 1, 2, 0], "rgba": [2, 1, 0, 0]}[layout]
    pixels = photo[:, :, order]
    expected = photo[:, :, 0] if layout == "mono" else photo
    if wide:
        pixels = pixels.astype(np.uint16) * 256 + 77  # the high byte counts
    pixels = pixels[:, :, 0] if layout == "mono" else pixels
    image = image_from_message(message(pixels, f"{layout}{16 if wide else 8}", padding, bigendian))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(("encoding", "channels"), [("8UC1", 1), ("8UC3", 3), ("8UC4", 4)])
def test_encodings_without_meaning_are_taken_as_grey_or_bgr(photo, encoding, channels):
    pixels = np.dstack([photo, photo[:, :, 0]])[:, :, :channels]
    expected = photo[:, :, 0] if channels == 1 else photo
    np.testing.assert_array_equal(image_from_message(message(pixels, encoding)), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns(pattern, bits):
    colour = {"b": 40, "g": 90, "r": 200}
    cell = np.array([colour[letter] for letter in pattern], np.uint16).reshape(2, 2) * (1 if bits == 8 else 256)
    mosaic = np.tile(cell, (8, 8)).astype(f"uint{bits}")
    image = image_from_message(message(mosaic, f"bayer_{pattern}{bits}", padding=2))
    assert image.shape == (16, 16, 3)
    np.testing.assert_array_equal(image[8, 8], [40, 90, 200])


@pytest.mark.parametrize(("encoding", "luma"), [("yuv422", 1), ("uyvy", 1), ("yuv422_yuy2", 0), ("yuyv", 0)])
def test_yuv422_byte_orders(encoding, luma):
    """BT.601 by hand: Y 81, U 90, V 240 is red."""
    pixels = np.zeros((4, 6, 2), np.uint8)
    pixels[:, :, luma] = 81
    pixels[:, 0::2, 1 - luma], pixels[:, 1::2, 1 - luma] = 90, 240
    image = image_from_message(message(pixels, encoding, padding=4))
    np.testing.assert_allclose(image, np.broadcast_to([0, 0, 255], (4, 6, 3)), atol=2)


def test_data_may_be_bytes_array_list_or_numpy(photo):
    plain = message(photo[:, :, 0], "mono8")
    for kind in (lambda data: array.array("B", data), lambda data: np.frombuffer(data, np.uint8), list, bytearray):
        other = SimpleNamespace(**{**vars(plain), "data": kind(plain.data)})
        np.testing.assert_array_equal(image_from_message(other), photo[:, :, 0])


def test_eight_bit_images_are_views():
    data = np.zeros(24, np.uint8)
    image = image_from_message(
        SimpleNamespace(height=2, width=3, encoding="bgr8", step=12, data=data, is_bigendian=0)
    )
    data[12] = 9
    assert image[1, 0, 0] == 9


def test_grey_of_colour(photo):
    assert to_gray(photo).shape == photo.shape[:2]
    grey = photo[:, :, 1]
    assert to_gray(grey) is grey
    assert to_gray(np.full((1, 1, 3), (255, 0, 0), np.uint8))[0, 0] == 29  # blue, as BT.601 weighs it


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"data": b"\0" * 100}, "has 100 bytes, expected step·height = 19200"),
        ({"step": 100}, "step 100, expected at least 160 bytes a row"),
        ({"step": 0}, "step 0"),
        ({"width": 0}, "expected at least one pixel"),
        ({"height": 0}, "expected at least one pixel"),
        ({"encoding": "nv99"}, "'nv99' is unknown; publish one of: .*mono8"),
        ({"encoding": "32FC1"}, "'32FC1' is unknown"),
    ],
)
def test_unusable_images_say_why(photo, changes, wrong):
    with pytest.raises(InputError, match=wrong) as caught:
        image_from_message(SimpleNamespace(**{**vars(message(photo[:, :, 0], "mono8")), **changes}))
    assert "\n" not in str(caught.value)


def test_yuv422_needs_an_even_width():
    with pytest.raises(InputError, match="even width"):
        image_from_message(message(np.zeros((4, 5, 2), np.uint8), "yuv422"))


def test_other_encodings_go_through_cv_bridge_where_it_imports(photo, monkeypatch):
    class Bridge:
        def imgmsg_to_cv2(self, image, wanted):
            if image.height == 1:
                raise TypeError("no conversion")
            assert wanted == "bgr8"
            return photo

    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=Bridge, CvBridgeError=KeyError))
    assert image_from_message(message(photo, "nv21")) is photo
    with pytest.raises(InputError, match="unknown to us and to cv_bridge"):
        image_from_message(message(photo[:1], "nv21"))


@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
def test_depth_in_millimetres(encoding, bigendian):
    depth = depth_from_message(message(np.array([[0, 1500], [65535, 1]], np.uint16), encoding, 6, bigendian))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[0, 1.5], [65.535, 0.001]], rtol=1e-6)


@pytest.mark.parametrize("bigendian", [False, True])
def test_depth_in_metres_without_what_is_none(bigendian):
    pixels = np.array([[1.25, np.nan], [np.inf, -2], [-np.inf, 0]], np.float32)
    depth = depth_from_message(message(pixels, "32FC1", 8, bigendian))
    np.testing.assert_array_equal(depth, np.array([[1.25, 0], [0, 0], [0, 0]], np.float32))


def test_a_picture_is_no_depth(photo):
    with pytest.raises(InputError, match="publish 16UC1"):
        depth_from_message(message(photo, "bgr8"))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("colour", [True, False])
def test_compressed_pictures(photo, suffix, colour):
    picture = photo if colour else photo[:, :, 0]
    image = image_from_compressed(compressed(cv2.imencode(suffix, picture)[1].tobytes()))
    assert image.shape == picture.shape
    assert np.abs(image.astype(int) - picture).mean() < (8 if suffix == ".jpg" else 1e-9)


def test_padding_after_a_jpeg_and_a_thumbnail_in_it_are_harmless(photo):
    jpeg = cv2.imencode(".jpg", photo)[1].tobytes()
    assert image_from_compressed(compressed(jpeg + b"\0" * 100)).shape == photo.shape
    thumbnail = cv2.imencode(".jpg", photo[::8, ::8])[1].tobytes()
    block = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    nested = jpeg[:2] + block + jpeg[2:]
    assert image_from_compressed(compressed(nested)).shape == photo.shape
    with pytest.raises(InputError, match="truncated"):
        image_from_compressed(compressed(nested[: len(nested) * 3 // 4]))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_pictures_are_refused(photo, suffix, share):
    data = cv2.imencode(suffix, photo)[1].tobytes()
    with pytest.raises(InputError):
        image_from_compressed(compressed(data[: int(len(data) * share)]))


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InputError):
        image_from_compressed(compressed(data))


HEADER = np.array([(0, 100.0, 2.5)], [("format", "<i4"), ("a", "<f4"), ("b", "<f4")]).tobytes()


def test_compressed_depth_in_millimetres():
    values = np.array([[0, 1500], [65535, 1]], np.uint16)
    png = cv2.imencode(".png", values)[1].tobytes()
    for data in (HEADER + png, png):
        depth = depth_from_compressed(compressed(data, "16UC1; compressedDepth png"))
        np.testing.assert_allclose(depth, values / 1000, rtol=1e-6)


def test_compressed_depth_as_inverse():
    values = np.array([[0, 52], [2, 1002]], np.uint16)
    data = HEADER + cv2.imencode(".png", values)[1].tobytes()
    depth = depth_from_compressed(compressed(data, "32FC1; compressedDepth png"))
    np.testing.assert_allclose(depth, [[0, 100 / 49.5], [0, 100 / 999.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (HEADER + b"rvl", "holds no PNG"),
        (b"", "holds no PNG"),
        (HEADER + cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes(), "expected H×W uint16"),
        (HEADER + cv2.imencode(".png", np.ones((40, 40), np.uint16))[1].tobytes()[:60], "truncated"),
    ],
)
def test_unusable_compressed_depth_says_why(data, wrong):
    with pytest.raises(InputError, match=wrong):
        depth_from_compressed(compressed(data, "16UC1; compressedDepth"))


def test_messages_of_rclpy_are_read(photo):
    pytest.importorskip("sensor_msgs.msg")
    from sensor_msgs.msg import Image

    plain = message(photo, "bgr8", padding=5)
    image = Image(height=plain.height, width=plain.width, encoding="bgr8", step=plain.step, data=plain.data)
    np.testing.assert_array_equal(image_from_message(image), photo)


def test_the_table_covers_what_users_have():
    needed = "mono8 mono16 rgb8 bgr8 rgba8 bgra8 yuv422 yuv422_yuy2 bayer_rggb8 bayer_bggr8 bayer_gbrg8 bayer_grbg8"
    assert set(needed.split()) <= set(ENCODINGS)
