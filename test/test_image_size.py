"""Sizes as options name them: which number is the height, and that upright images are said to be so."""

from __future__ import annotations

import pytest

from kp_frontend.errors import InputError
from kp_training.cli import evaluate, prepare
from kp_training.cli.image_size import read_size


def test_height_first_for_networks_width_first_for_images(caplog):
    assert read_size("--size", "480x640") == (480, 640)
    assert prepare._size("640x480") == (640, 480)
    size = evaluate._size("640x480")
    assert (size.width, size.height) == (640, 480)
    assert evaluate._size(None) is None
    assert not caplog.text


@pytest.mark.parametrize(("read", "text"), [
    (lambda text: read_size("--size", text), "640x480"), (prepare._size, "480x640"), (evaluate._size, "480x640"),
])
def test_upright_images_are_said_to_be_so(read, text, caplog):
    """They are rare: who takes one order for the other is told."""
    read(text)
    assert f"--size {text}: 640 high, 480 wide" in caplog.text


@pytest.mark.parametrize("text", ["480", "480x", "0x640", "480x640x3", "²x640"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=r"expected HEIGHTxWIDTH, as in 480x640"):
        read_size("--size", text)
