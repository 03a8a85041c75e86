"""The files that ``benchmark model`` runs: those that ship, and every other precision and profile made from weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.model_file import CHOICES, read_metadata
from kp_frontend.progress import Progress
from kp_frontend.resources import find_resource, model_names
from kp_training.methods import METHODS


@dataclass(frozen=True)
class Subject:
    """A network that is run from several files.

    file: as it was given or ships, None where there is none.  weights: checkpoint that others are exported from, None
    where there is none.  method: whose untrained network it is, "" of a trained one.
    """

    name: str
    file: Path | None = None
    weights: Path | None = None
    method: str = ""


@dataclass(frozen=True)
class Variant:
    """One file of a subject.  quantized_for: as in ModelMetadata.  top_k: 0 = dense, else the rows of a sparse file."""

    precision: str
    quantized_for: str = ""
    top_k: int = 0

    @property
    def profile(self) -> str:
        return "sparse" if self.top_k else "dense"

    @property
    def label(self) -> str:
        """For a table that names the points and the engine."""
        return f"{self.precision} {self.profile}"

    def __str__(self) -> str:
        target = f" for {self.quantized_for}" * bool(self.quantized_for)
        return f"{self.precision}{target} {self.profile}" + f" {self.top_k}" * bool(self.top_k)


REFERENCE = Variant("fp32")
"""What every other file of a subject is compared with."""


def default_subjects() -> list[str]:
    """Names of all models that ship, without those that are a precision of another, and SuperPoint's network."""
    names = model_names()
    derived = {f"{name}_{precision}" for name in names for precision in CHOICES["precision"]}
    return [*(name for name in names if name not in derived), "superpoint"]


def find_subject(name: str) -> Subject:
    """The subject of a model's name, a path to an .onnx or .ckpt file, or a method's name (its untrained network).

    Raises InputError where there is none.
    """
    path = Path(name).expanduser()
    if path.suffix == ".ckpt" and path.is_file():
        return Subject(path.stem, None, path)
    if path.suffix != ".onnx" and path.name == name:
        if name in METHODS:
            return Subject(name, method=name)
        if name not in model_names():
            raise unknown_name("features", name, [*model_names(), *METHODS, "a path to an .onnx or .ckpt file"])
        path = find_resource("models", f"{name}.onnx")
    if not path.is_file():
        raise InputError(f"no file {path}; give a model's name, or a path to an .onnx or .ckpt file")
    weights = path.with_suffix(".ckpt")
    return Subject(path.stem, path, weights if weights.is_file() else None)


def make_files(
    subject: Subject, variants: Sequence[Variant], folder: Path, progress: Progress
) -> dict[Variant, Path | str]:
    """Each variant's file, made in `folder` where it does not ship, or why there is none."""
    found: dict[Variant, Path | str] = {}
    for variant in variants:
        try:
            found[variant] = _shipped(subject, variant) or _exported(subject, variant, folder)
        except InputError as error:
            found[variant] = str(error)
        except Exception as error:  # whatever a library makes of one file, the others must go on
            found[variant] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        progress(len(found), len(variants))
    return found


def own_variant(subject: Subject) -> list[Variant]:
    """What the subject's file is, if it has one."""
    return [_variant_of(subject.file)] if subject.file is not None else []


def _variant_of(file: Path) -> Variant:
    metadata = read_metadata(file)
    return Variant(metadata.precision, metadata.quantized_for, metadata.top_k)


def _shipped(subject: Subject, variant: Variant) -> Path | None:
    """The file itself, or the one beside it that is named after the precision, if it is this variant."""
    if subject.file is None:
        return None
    beside = subject.file.with_name(f"{subject.name}_{variant.precision}.onnx")
    for file in (subject.file, beside):
        if file.is_file() and _variant_of(file) == variant:
            return file
    return None


def _exported(subject: Subject, variant: Variant, folder: Path) -> Path:
    """What ``kp_training export`` makes of the weights."""
    from kp_training.cli import export

    if subject.weights is None and not subject.method:
        raise InputError(f"no {variant} file, and no {subject.name}.ckpt beside {subject.file} to export it from")
    weights = subject.weights or _untrained(subject.method, folder)
    file = folder / f"{subject.name}-{str(variant).replace(' ', '-')}.onnx"
    words = [str(weights), "--output", str(file)]
    if variant.precision != REFERENCE.precision:
        words += ["--precision", variant.precision, "--input-dtype", "uint8"]
    if variant.quantized_for:
        words += ["--quantized-for", variant.quantized_for]
    if variant.top_k:
        words += ["--top-k", str(variant.top_k)]
    with redirect_stdout(StringIO()):
        export.main(words)
    return file


def _untrained(method: str, folder: Path) -> Path:
    """A checkpoint of the method's last stage as it begins, always with the same weights."""
    import torch

    from kp_training.runs import build_run, write_checkpoint

    file = folder / f"{method}.ckpt"
    if not file.is_file():
        torch.manual_seed(0)
        run = build_run(folder, method, [])
        stage = run.stages[-1]
        weights = {f"network.{name}": values for name, values in stage.network().state_dict().items()}
        about = {**run.description(), "stage": stage.name}
        write_checkpoint({"kp_training": about, "global_step": 0, "state_dict": weights}, file)
    return file
