"""A process for the rows of each backend of ``benchmark model``, so that a crash ends those alone."""

from __future__ import annotations

import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from subprocess import DEVNULL
from typing import Any

from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_frontend.isolated import Ended, start
from kp_training.benchmarks.model_rows import RUNNERS, ExtractorRunner, Facts, Row, Runner, open_row

_LONG = 50.0  # ms of a run that needs no other to warm the caches for it
_TURN = 4


class Process:
    """A process with the rows of one backend; see `Rows`."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        # One thread of BLAS, as the nodes have: see kp_frontend.__main__.
        self._connection, self._child = start(__name__, stdout=DEVNULL, OPENBLAS_NUM_THREADS="1")

    def ask(self, name: str, *arguments: Any) -> Any:
        """The answer of a method of `Rows`; raises InputError with what it says, or where the process has ended."""
        try:
            self._connection.send((name, arguments))
            kind, content = self._connection.recv()
        except (EOFError, OSError):
            raise InputError(str(Ended(self.backend, self._child.wait()))) from None
        if kind == "refused":
            raise InputError(content.partition(f" cannot be run: {self.backend}: ")[2] or content)
        return content

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._child.terminate()
        self._child.wait()


class Processes:
    """One for each backend that is asked; a context manager that ends them."""

    def __init__(self) -> None:
        self._running: dict[str, Process] = {}

    def ask(self, backend: str, name: str, *arguments: Any) -> Any:
        """See `Process.ask`."""
        if backend not in self._running:
            self._running[backend] = Process(backend)
        return self._running[backend].ask(name, *arguments)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.close()


class Rows:
    """The rows of one process, by number."""

    def __init__(self) -> None:
        self.runners: dict[int, Runner] = {}

    def open(self, number: int, row: Row, reference: list[Features] | None, pairs: int) -> Facts:
        """Make a row run."""
        runner = RUNNERS[row.kind](row)
        facts = runner.facts(reference, pairs)
        self.runners[number] = runner
        return facts

    def probe(self, row: Row) -> None:
        """Whether the backend runs at all."""
        open_row(row)

    def features(self, row: Row) -> list[Features]:
        """What a network finds in the images."""
        return ExtractorRunner.of_network(row).features()

    def turn(self, number: int) -> list[dict[str, float]]:
        """Times of the next few runs of a row; others ran in between, so a first one that is short is not counted."""
        runner = self.runners[number]
        first = runner.run(0)
        return [first] if first["whole"] > _LONG else [runner.run(run) for run in range(_TURN)]


def _serve(connection: Connection) -> None:
    """The child of `Process`: calls of `Rows`, until the parent closes the pipe."""
    rows = Rows()
    while True:
        name, arguments = connection.recv()
        try:
            answer = ("done", getattr(rows, name)(*arguments))
        except (InputError, MemoryError) as error:
            answer = ("refused", str(error) or "not enough memory")
        except Exception as error:  # a backend raises what it likes, and the other rows must go on
            answer = ("refused", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        connection.send(answer)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        _serve(Connection(int(sys.argv[1])))
