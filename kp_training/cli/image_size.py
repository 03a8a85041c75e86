"""The size of images, as options name it."""

from __future__ import annotations

from kp_frontend.errors import InputError


def read_size(option: str, text: str) -> tuple[int, int]:
    """Height and width, pixels, of ``480x640``; InputError, naming `option`, for anything else."""
    sides = [int(side) if side.isascii() and side.isdigit() else 0 for side in text.split("x")]
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"{option} {text}: expected HEIGHTxWIDTH, as in 480x640")
    return sides[0], sides[1]
