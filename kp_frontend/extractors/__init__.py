"""Extractors by name: classical ones from the table, learned ones by model name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.extractors import classical, learned
from kp_frontend.extractors.base import Extractor
from kp_frontend.extractors.options import parse_spec
from kp_frontend.resources import find_resource, model_names
from kp_frontend.settings import read_settings

__all__ = ["EXTRACTORS", "TRACKERS", "Extractor", "load_extractor", "parse_spec"]

EXTRACTORS = classical.EXTRACTORS
TRACKERS = ("gftt_lk",)  # valid --features that find points by following them, not by describing them
_MODEL_SUFFIXES = (".onnx", ".engine")


def load_extractor(
    spec: str, top_k: int = 1000, backend: str = "auto", threads: int = 0, **options: Any
) -> Extractor:
    """The extractor that `spec` names: ``orb``, ``sift``, ``rootsift``, ``surf``, a model, or a path to one.

    Options may follow the name (``kp2d_compact:detector=gftt,top_k=500``) and win over the arguments.
    top_k: at most so many features an image.  backend: ``auto``, or what shall run the network.
    threads: of a network on a CPU, 0 = one a core.
    Raises InputError for an unknown name, option or value, and for a model that cannot be used.
    """
    name, given = parse_spec(spec)
    if name in TRACKERS:
        raise InputError(
            f"{name!r} is a tracker (optical flow): it has no descriptors and needs a sequence; "
            f"use it through Frontend({name!r}), a node or `replay`, not as an extractor"
        )
    values = {"top_k": top_k, "backend": backend, **options, **given}
    if name in EXTRACTORS:
        kind, build = EXTRACTORS[name]
        return build(spec, read_settings(name, kind, values))
    values = {"threads": threads, **values}
    return learned.load(spec, _model_path(name), values, *_other_detector(values))


def _other_detector(values: dict[str, Any]) -> list[Extractor]:
    """The extractor that the option ``detector`` of a learned one names, if it does."""
    detector = values.get("detector", "network")
    if detector in learned.DETECTORS:
        return []
    try:
        return [load_extractor(detector, values["top_k"], values["backend"], values["threads"])]
    except InputError as error:
        own = " or ".join(learned.DETECTORS)
        raise InputError(f"detector={detector} is neither {own} nor an extractor: {error}") from None


def _model_path(name: str) -> Path:
    """The file of a model given by path or by bare name."""
    if Path(name).suffix in _MODEL_SUFFIXES or Path(name).name != name:
        return Path(name).expanduser()
    try:
        return find_resource("models", f"{name}.onnx")
    except InputError:
        valid = [*EXTRACTORS, *TRACKERS, *model_names(), "a path to an .onnx or .engine file"]
        raise unknown_name("features", name, valid) from None
