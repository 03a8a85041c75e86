"""Options of extractors and trackers: declared as frozen dataclasses, given as ``orb:top_k=500,levels=4``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from kp_frontend.engines import Backend
from kp_frontend.errors import InputError, unknown_name

OptionsType = TypeVar("OptionsType")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Options:
    """What every extractor takes.

    top_k: at most so many features, the best by score.  backend: what runs a network; classical extractors need none.
    """

    top_k: int = 1000
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}, expected at least 1")


@dataclass(frozen=True)
class EngineOptions(Options):
    """What every extractor with a network takes.  threads: of a CPU backend, 0 = one a core."""

    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise InputError(f"threads is {self.threads}, expected at least 1, or 0 for one a core")


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name:key=value,key=value`` into the name (or path) and its options, still as text.

    Raises InputError where an option is not ``key=value`` or comes twice.
    """
    name, _, text = str(spec).partition(":")
    options: dict[str, str] = {}
    for entry in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not key or not value or key in options:
            raise InputError(f"features {spec!r}: {entry!r} is not a new key=value; write NAME:key=value,key=value")
        options[key] = value
    if not name.strip():
        raise InputError(f"features {spec!r} names no extractor; write NAME or NAME:key=value,key=value")
    return name.strip(), options


def read_options(owner: str, kind: type[OptionsType], values: Mapping[str, Any]) -> OptionsType:
    """`values` (texts of a command line, or Python values) as an instance of the options dataclass `kind`.

    Raises InputError for an option that `kind` has not, listing those it has, and for a value of the wrong type.
    """
    hints = get_type_hints(kind)
    valid = [entry.name for entry in fields(kind) if entry.init]  # type: ignore[arg-type]
    for key in values:
        if key not in valid:
            raise unknown_name(f"option of {owner}", key, valid)
    return kind(**{key: _typed(f"{owner}: option {key}", hints[key], value) for key, value in values.items()})


def _typed(what: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{what} is {value!r}, expected one of: {', '.join(map(str, get_args(hint)))}")
        return value
    alternatives = get_args(hint) or (hint,)
    if value is None and type(None) in alternatives:
        return None
    target = next(kind for kind in alternatives if kind is not type(None))
    try:
        return _CONVERTERS[target](value)
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{what} is {value!r}, expected {target.__name__}") from None


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (not isinstance(value, str) and value != int(value)):
        raise ValueError(value)
    return int(value)


def _to_float(value: Any) -> float:
    number = float(value)
    if number != number or isinstance(value, bool):
        raise ValueError(value)
    return number


def _to_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _TRUTH[str(value).lower()]


_CONVERTERS: dict[type, Callable[[Any], Any]] = {int: _to_int, float: _to_float, bool: _to_bool, str: str}
