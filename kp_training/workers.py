"""One function over many tasks in processes of their own: the same results whatever their number."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from subprocess import Popen
from typing import Any, TypeVar

from kp_frontend.errors import InputError
from kp_frontend.isolated import start

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[tuple[int, Result]]:
    """(number of the task, ``function(task)``), as they are done.

    function: picklable, of a module that can be imported.  jobs: processes; with 1, all is done in this one.
    Raises InputError or OSError where a task does, RuntimeError with the trace where one fails; no process outlives the
    iterator.
    """
    if min(jobs, len(tasks)) <= 1:
        yield from ((number, function(task)) for number, task in enumerate(tasks))
        return
    workers: dict[Any, Popen] = {}
    try:
        for _ in range(min(jobs, len(tasks))):
            connection, process = _start()
            workers[connection] = process
            connection.send(function)
        waiting = iter(enumerate(tasks))
        for connection in workers:
            connection.send(next(waiting))
        for _ in tasks:
            connection = wait(list(workers))[0]
            number, result = _receive(connection, workers[connection])
            following = next(waiting, None)
            if following is not None:
                connection.send(following)
            yield number, result
    finally:
        for connection, process in workers.items():
            process.terminate()
            connection.close()
        for process in workers.values():
            process.wait()


def _start() -> tuple[Connection, Popen]:
    """A worker and our end of its pipe."""
    # Ctrl-C reaches the whole process group: the workers are born deaf to it, the parent ends them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return start(__name__, OMP_NUM_THREADS="1")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _receive(connection: Connection, process: Popen) -> tuple[int, Any]:
    try:
        kind, number, content = connection.recv()
    except (EOFError, ConnectionError):
        raise RuntimeError(f"a worker ended with exit code {process.wait()}; out of memory? try fewer --jobs") from None
    if kind == "refused":
        raise InputError(content)
    if kind == "system":
        raise content
    if kind == "failed":
        raise RuntimeError(f"a worker failed:\n{content}")
    return number, content


def _serve(connection: Connection) -> None:
    """The child of `run_tasks`: ends when the parent closes the pipe."""
    import cv2

    cv2.setNumThreads(1)
    function = connection.recv()
    while True:
        number, task = connection.recv()
        try:
            answer = ("done", number, function(task))
        except InputError as error:
            answer = ("refused", number, str(error))
        except OSError as error:  # a full disk is for the caller to explain
            answer = ("system", number, error)
        except Exception:
            answer = ("failed", number, traceback.format_exc())
        connection.send(answer)


if __name__ == "__main__":
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, ConnectionError):
        sys.exit(0)
