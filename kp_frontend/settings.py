"""Settings declared as frozen dataclasses and given as words, ``key=value``, or as entries of a YAML file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from kp_frontend.errors import InputError, unknown_name

Settings = TypeVar("Settings")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def read_settings(owner: str, kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """`values` (texts of a command line, or Python values) as an instance of the dataclass `kind`.

    owner: what they are settings of, for messages.
    Raises InputError for a setting that `kind` has not, listing those it has, and for a value of the wrong type.
    """
    hints = get_type_hints(kind)
    valid = [entry.name for entry in fields(kind) if entry.init]  # type: ignore[arg-type]
    for key in values:
        if key not in valid:
            raise unknown_name(f"setting of {owner}", key, valid)
    return kind(**{key: _typed(f"{owner}: {key}", hints[key], value) for key, value in values.items()})


def _typed(what: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{what}={value}: expected one of: {', '.join(map(str, get_args(hint)))}")
        return value
    alternatives = get_args(hint) or (hint,)
    if value is None and type(None) in alternatives:
        return None
    target = next(kind for kind in alternatives if kind is not type(None))
    try:
        return _CONVERTERS[target](value)
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{what}={value}: expected {_NAMES[target]}") from None


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
        raise ValueError(value)
    return int(value)


def _to_float(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(value)
    return number


def _to_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _TRUTH[str(value).lower()]


_CONVERTERS: dict[type, Callable[[Any], Any]] = {int: _to_int, float: _to_float, bool: _to_bool, str: str}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
