"""Checks of settings name the setting, its value, and what is valid."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kp_frontend.errors import InputError
from kp_training.settings import check_least, check_names, check_sides

CONFIG = SimpleNamespace(network="big", steps=0, rate=-1.0, height=96, width=0)


def test_what_is_valid_passes():
    check_names(CONFIG, {"network": ("big", "small")})
    check_least(CONFIG, {"steps": 0, "rate": -1})
    check_sides(CONFIG, ("height", "width"), 32)


@pytest.mark.parametrize(("check", "said"), [
    (lambda: check_names(CONFIG, {"network": ("tiny", "small")}, "kp2d"), "unknown kp2d network 'big'.*small, tiny"),
    (lambda: check_names(CONFIG, {"network": ("tiny",)}), "unknown network 'big'"),
    (lambda: check_least(CONFIG, {"steps": 1}), "steps=0: expected at least 1"),
    (lambda: check_least(CONFIG, {"rate": 0}), "rate=-1: expected at least 0"),
    (lambda: check_sides(CONFIG, ("height",), 64), "height=96: expected a multiple of 64, of at least 64, or 0"),
    (lambda: check_sides(CONFIG, ("width", "height"), 32, 128), "height=96: .* at least 128"),
])
def test_what_is_not_is_one_line(check, said):
    with pytest.raises(InputError, match=said):
        check()
