"""A run in a process of its own, so that its memory and processor time are its own."""

from __future__ import annotations

from pathlib import Path

from kp_frontend.isolated import call_isolated
from kp_frontend.replay.bag import BagOptions, BagSequence
from kp_frontend.replay.offline import Progress, RunOptions, run_offline
from kp_frontend.replay.result import RunResult


def run_isolated(
    bag: Path, bag_options: BagOptions, features: str, options: RunOptions, progress: Progress | None = None
) -> RunResult:
    """`run_offline` in a fresh process, with the features' own memory and processor time."""
    return call_isolated(_run, bag, bag_options, features, options, progress=progress or (lambda *_: None),
                         name=features, quiet=False)


def _run(bag: Path, bag_options: BagOptions, features: str, options: RunOptions, progress: Progress) -> RunResult:
    with BagSequence(bag, bag_options) as sequence:
        return run_offline(sequence, features, options, progress)
