"""Checks that settings of several methods have in common; each raises InputError, naming the setting and its value."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from kp_frontend.errors import InputError, unknown_name


def check_names(config: Any, tables: Mapping[str, Container[str]], owner: str = "") -> None:
    """Each setting of `tables` must be a name in its table.  owner: what they are settings of, for messages."""
    for name, table in tables.items():
        if getattr(config, name) not in table:
            raise unknown_name(f"{owner} {name}".strip(), getattr(config, name), table)


def check_least(config: Any, leasts: Mapping[str, float]) -> None:
    """Each setting of `leasts` must be at least so much."""
    for name, least in leasts.items():
        value = getattr(config, name)
        if value < least:
            seen = f"{value:g}" if isinstance(value, float) else value
            raise InputError(f"{name}={seen}: expected at least {least}")


def check_closest(config: Any) -> None:
    """`closest` of PosedPairConfig: at least 1, or 0, which is auto."""
    if config.closest and config.closest < 1:
        raise InputError(f"closest={config.closest:g}: expected at least 1, or 0 for auto")


def check_sides(config: Any, names: Iterable[str], multiple: int, least: int = 64) -> None:
    """Settings `names`, sides of views in pixels, must be a `multiple` and at least `least`, or 0, which is auto."""
    for name in names:
        side = getattr(config, name)
        if side and (side < least or side % multiple):
            raise InputError(f"{name}={side}: expected a multiple of {multiple}, of at least {least}, or 0 for auto")
