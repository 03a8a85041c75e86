"""An ``.engine`` file that says of itself what it is: magic, length of a JSON header, header, TensorRT's plan."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from kp_frontend.atomic import written_whole
from kp_frontend.engines.tensorrt.library import Target
from kp_frontend.engines.tensorrt.sizes import Sizes
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata

_MAGIC = b"KPENGINE"
_LENGTH = struct.Struct("<I")
_LONGEST = 1 << 20  # bytes of a header; more is damage
_VERSION = 1
BUILD = "build it here: python -m kp_training build_engine MODEL.onnx"


@dataclass(frozen=True)
class Recipe:
    """All that decides what an engine is.

    metadata: of the model.  model_sha256: of its ONNX file.  sizes: of the images.  workspace: MB of scratch memory
    that a layer may take, 0 = TensorRT's default.  target: what it is built with and for.
    """

    metadata: ModelMetadata
    model_sha256: str
    sizes: Sizes
    workspace: int
    target: Target

    @property
    def key(self) -> str:
        """Short name that no other recipe has."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Header:
    """recipe: of the plan.  model: name of the ONNX file.  plan_size: bytes.  plan_sha256: of the plan."""

    recipe: Recipe
    model: str
    plan_size: int
    plan_sha256: str


def file_sha256(path: Path) -> str:
    """Of what the file holds; InputError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"model {path} cannot be read ({error.strerror})") from error


def write_plan(path: Path, recipe: Recipe, model: str, plan: bytes) -> None:
    """Write an engine file whole; InputError where it cannot be written."""
    header = Header(recipe, model, len(plan), hashlib.sha256(plan).hexdigest())
    text = json.dumps({"version": _VERSION, **asdict(header)}, sort_keys=True).encode()
    try:
        with written_whole(path) as beside:
            beside.write_bytes(b"".join((_MAGIC, _LENGTH.pack(len(text)), text, plan)))
    except OSError as error:
        raise InputError(f"cannot write engine {path} ({error.strerror}); give another folder") from error


def read_header(path: Path) -> Header:
    """What an engine file says of itself; InputError where it is none of ours, or not whole."""
    return _open(path)[0]


def read_plan(path: Path) -> tuple[Header, bytes]:
    """An engine file's header and plan; InputError where it is none of ours, or not what was written."""
    header, plan = _open(path, whole=True)
    if hashlib.sha256(plan).hexdigest() != header.plan_sha256:
        raise InputError(f"engine {path} is damaged (its content is not what was written); {BUILD}")
    return header, plan


def _open(path: Path, whole: bool = False) -> tuple[Header, bytes]:
    try:
        with open(path, "rb") as file:
            header = _read_header(path, file)
            missing = path.stat().st_size - file.tell() - header.plan_size
            if missing:
                raise InputError(f"engine {path} is {'cut short' if missing < 0 else 'too long'} "
                                 f"({header.plan_size + missing} of {header.plan_size} bytes); {BUILD}")
            return header, file.read() if whole else b""
    except OSError as error:
        raise InputError(f"engine {path} cannot be read ({error.strerror})") from error


def _read_header(path: Path, file: BinaryIO) -> Header:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise InputError(f"engine {path} was not written by build_engine (a bare TensorRT plan says neither for what "
                         f"it was built nor how it is decoded); {BUILD}")
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        text = file.read(min(length, _LONGEST))
        values = json.loads(text.decode())
        if values.pop("version") != _VERSION:
            raise InputError(f"engine {path} was written by another version of build_engine; {BUILD}")
        recipe = values.pop("recipe")
        metadata = ModelMetadata(**recipe.pop("metadata"))
        sizes, target = Sizes(**recipe.pop("sizes")), Target(**recipe.pop("target"))
        return Header(Recipe(metadata=metadata, sizes=sizes, target=target, **recipe), **values)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"engine {path} is damaged (its header cannot be read); {BUILD}") from error
