"""``benchmark``: what a frame costs on this machine, what training does, and what posed data do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from kp_frontend.errors import InputError
from kp_training.cli import benchmark_model, benchmark_posed, benchmark_training

KINDS: dict[str, tuple[ModuleType, str, str]] = {
    "model": (benchmark_model, "a frame's time by engine, precision, size and points, beside orb and sift",
              "Each row in turn, with its parity to fp32 and its accuracy; files that do not ship are exported first."),
    "training": (benchmark_training, "images a second, memory and waiting for data of each method",
                 "A few steps of each method in its own process, at the paper's image size and batch."),
    "posed": (benchmark_posed, "rendering, overlap, loading and labelling of posed views",
              "Each kind of work in its own process, beside its goal."),
}
"""WHAT → module with ``add_options(parser)`` and ``run(options, argv) -> exit code``, line of help, description."""


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_args(argv)
    if sys.platform != "linux":
        raise InputError(f"on {sys.platform} the peak of memory cannot be read; measure on Linux")
    return KINDS[options.what][0].run(options, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmark", description="Measure models and training on this machine.")
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (kind, about, description) in KINDS.items():
        kind.add_options(kinds.add_parser(name, help=about, description=description))
    return parser
