"""A run in a process of its own, so that its memory and processor time are its own."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from subprocess import Popen

import kp_frontend
from kp_frontend.errors import InputError
from kp_frontend.replay.bag import BagOptions, BagSequence
from kp_frontend.replay.offline import Progress, RunOptions, run_offline
from kp_frontend.replay.result import RunResult


def run_isolated(
    bag: Path, bag_options: BagOptions, features: str, options: RunOptions, progress: Progress | None = None
) -> RunResult:
    """`run_offline` in a fresh process, with the features' own memory and processor time."""
    ours, theirs = Pipe()
    # multiprocessing would import the caller's main module again; a plain child needs nothing of it.
    paths = [str(Path(kp_frontend.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    child = Popen(
        [sys.executable, "-m", "kp_frontend.replay.isolated", str(theirs.fileno())], pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    theirs.close()
    try:
        ours.send((bag, bag_options, features, options))
        while True:
            kind, content = ours.recv()
            if kind == "result":
                return content
            if kind == "refused":
                raise InputError(content)
            if progress is not None:
                progress(*content)
    except (EOFError, ConnectionError):
        raise RuntimeError(f"the process that ran {features} ended with exit code {child.wait()}") from None
    finally:
        ours.close()
        child.terminate()
        child.wait()


def _serve(connection: Connection) -> None:
    """The child of `run_isolated`."""
    bag, bag_options, features, options = connection.recv()
    try:
        with BagSequence(bag, bag_options) as sequence:
            result = run_offline(sequence, features, options, lambda *done: connection.send(("progress", done)))
        connection.send(("result", result))
    except InputError as error:
        connection.send(("refused", str(error)))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole process group; the parent says so
        _serve(Connection(int(sys.argv[1])))
