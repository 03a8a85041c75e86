"""A node of ours in a process of its own, on a DDS domain that no one else uses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from kp_frontend.errors import InputError

_SHARED_MEMORY = Path("/dev/shm")
_NEEDED = 3 * 40 << 20  # the profile's segments of node, player and collector
_STOP_TIMEOUT = 10.0
# Domain ids above are beyond the ports that Linux leaves to servers.
_DOMAINS = range(1, 102)


@contextmanager
def private_domain() -> Iterator[int]:
    """Environment, for this process and its children, of a DDS domain of its own on this machine; yields its id."""
    from kp_frontend.nodes.run import middleware_environment

    domain = random.SystemRandom().choice(_DOMAINS)
    package = str(Path(__file__).resolve().parents[2])
    changes = {
        **middleware_environment(), "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    if os.environ.get("ROS_DISTRO") == "humble":  # which does not know the discovery range
        changes["ROS_LOCALHOST_ONLY"] = "1"
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield domain
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def shared_memory_shortage() -> str:
    """Why images cannot go through shared memory here, "" where they can.

    Fast DDS then takes UDP, which loses large messages unless they are sent reliably.
    """
    if not _SHARED_MEMORY.is_dir():
        return ""
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free >= _NEEDED:
        return ""
    return f"{_SHARED_MEMORY} has {free >> 20} MB free, {_NEEDED >> 20} are needed (docker run --shm-size=256m)"


class NodeProcess:
    """``python -m kp_frontend COMMAND`` with parameters and remappings; a context manager that ends it by Ctrl-C.

    parameters: by name, of the types that the node declares.  remappings: the node's name of a topic → ours.
    """

    def __init__(self, command: str, parameters: Mapping[str, Any], remappings: Mapping[str, str]) -> None:
        self._command = command
        self._parameters = dict(parameters)
        self._remappings = [word for name, topic in remappings.items() for word in ("-r", f"{name}:={topic}")]
        self._rss = 0

    def __enter__(self) -> NodeProcess:
        import psutil

        self._folder = tempfile.TemporaryDirectory(prefix="kp_frontend_node_")
        folder = Path(self._folder.name)
        self._frame_log, self._output = folder / "frames.jsonl", folder / "output.log"
        file = folder / "parameters.yaml"
        values = {"frame_log": str(self._frame_log), **self._parameters}
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}), encoding="utf-8")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kp_frontend", self._command,
                 "--ros-args", "--params-file", str(file), *self._remappings],
                stdout=output, stderr=subprocess.STDOUT,
            )
        self._measured = psutil.Process(self._process.pid)
        self.start_measuring()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def check(self) -> None:
        """InputError with the node's last words if it has ended; keeps an eye on its memory."""
        if self._process.poll() is not None:
            lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1].removeprefix("error: ") if lines else f"exit code {self._process.returncode}"
            raise InputError(f"the {self._command} node ended: {last}")
        self._rss = max(self._rss, self._measured.memory_info().rss)

    def start_measuring(self) -> None:
        """CPU time counts from here."""
        self._begin = self._cpu(), time.monotonic()

    def usage(self) -> tuple[float, float, float]:
        """CPU seconds and wall seconds since `start_measuring`, and the largest memory seen in MiB."""
        self.check()
        cpu, wall = self._begin
        return self._cpu() - cpu, time.monotonic() - wall, self._rss / 2**20

    def frames(self) -> list[dict[str, Any]]:
        """What the node wrote of each frame so far: stamp, timings in ms by stage, and counts, or an error."""
        lines = self._frame_log.read_text(encoding="utf-8").splitlines() if self._frame_log.exists() else []
        return [json.loads(line) for line in lines]

    def _cpu(self) -> float:
        times = self._measured.cpu_times()
        return times.user + times.system
