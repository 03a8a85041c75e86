"""One entry point for every command of a package: look the command up, run it, say errors in one line."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from kp_frontend.errors import InputError


def run(package: str, purpose: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Run ``argv[0]`` of `commands` (name → (module, one line of help)) with the rest of `argv`.

    A command's module has ``main(argv: list[str]) -> int | None`` and is imported only when it is called.
    Returns the exit code: 0 on success, 2 on bad usage or bad input, 130 after Ctrl-C or SIGTERM.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {package} COMMAND …\n\n{purpose}\n\ncommands (each has --help):")
        for name, (_, line) in commands.items():
            print(f"  {name:<12} {line}")
        return 0 if argv else 2
    name, *rest = argv
    if name not in commands:
        print(f"error: unknown command {name!r}; choose one of: {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        with _terminated_as_interrupted():
            return importlib.import_module(commands[name][0]).main(list(rest)) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("kp_frontend", "kp_training")):
            raise
        advice = "run `make setup`, or pip install it"
        print(f"error: {name} needs the Python package {error.name!r}: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which supervisors end a command, is Ctrl-C to it: children and what lies beside files go with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
