"""The size of images, as options name it: HEIGHTxWIDTH where a network is made for it, WIDTHxHEIGHT of what it sees."""

from __future__ import annotations

import logging

from kp_frontend.errors import InputError

log = logging.getLogger(__name__)


def read_size(option: str, text: str) -> tuple[int, int]:
    """Height and width, pixels, of ``480x640``; InputError, naming `option`, for anything else."""
    sides = [int(side) if side.isascii() and side.isdigit() else 0 for side in text.split("x")]
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"{option} {text}: expected HEIGHTxWIDTH, as in 480x640")
    say_upright(option, text, sides[0], sides[1])
    return sides[0], sides[1]


def say_upright(option: str, text: str, height: int, width: int) -> None:
    """Say how `text` was read where it makes upright images, which are rare: height and width may be confused."""
    if height > width:
        log.warning("%s %s: %d high, %d wide", option, text, height, width)
